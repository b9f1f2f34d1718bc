{{- define "banmesh.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* At most 40 characters: the longest name derived from it has 23 more, and a pod's name is its node id (at most 63). */}}
{{- define "banmesh.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := include "banmesh.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "banmesh.selectorLabels" -}}
app.kubernetes.io/name: {{ include "banmesh.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: node
{{- end }}

{{- define "banmesh.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "banmesh.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Whether the nodes have volumes that outlive their pods. */}}
{{- define "banmesh.persistent" -}}
{{- if and .Values.persistence.enabled (eq .Values.mode "statefulset") }}true{{ end }}
{{- end }}

{{- define "banmesh.volumeClaim" -}}
accessModes:
  {{- toYaml .Values.persistence.accessModes | nindent 2 }}
{{- with .Values.persistence.storageClass }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests:
    storage: {{ .Values.persistence.size }}
{{- end }}

{{- define "banmesh.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "banmesh.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "banmesh.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}
{{- end }}

{{- define "banmesh.keyringSecret" -}}
{{- default (printf "%s-cluster" (include "banmesh.fullname" .)) .Values.cluster.keyring.existingSecret }}
{{- end }}

{{/* address:port, with brackets around IPv6. */}}
{{- define "banmesh.listen" -}}
{{- $address := index . 0 -}}
{{- if contains ":" $address }}{{ printf "[%s]:%d" $address (int (index . 1)) }}{{ else }}{{ printf "%s:%d" $address (int (index . 1)) }}{{ end }}
{{- end }}

{{/* The open syslog ports: name, protocol, port in the pod and port of the service. */}}
{{- define "banmesh.syslogPorts" -}}
{{- $ports := list }}
{{- $service := .Values.service.syslog }}
{{- range list "udp" "tcp" }}
{{- if and $.Values.syslog.enabled (has $.Values.syslog.protocol (list . "both")) }}
{{- $ports = append $ports (dict "name" (printf "syslog-%s" .) "protocol" (upper .) "containerPort" (int $.Values.syslog.port) "port" (int $service.port) "nodePort" (get $service (printf "%sNodePort" .))) }}
{{- end }}
{{- end }}
{{- if .Values.syslog.tls.enabled }}
{{- $ports = append $ports (dict "name" "syslog-tls" "protocol" "TCP" "containerPort" (int .Values.syslog.tls.port) "port" (int $service.tlsPort) "nodePort" $service.tlsNodePort) }}
{{- end }}
{{- toYaml $ports }}
{{- end }}

{{/* The enabled ports of `listeners`: name of the service, section of the configuration, port in the pod, port and type of the service,
     and the ports' names with their protocols. */}}
{{- define "banmesh.listeners" -}}
{{- $found := list }}
{{- range $key, $one := .Values.listeners }}
{{- if $one.enabled }}
{{- $name := kebabcase $key }}
{{- $ports := eq $key "dnsbl" | ternary (list (dict "name" "dnsbl-udp" "protocol" "UDP") (dict "name" "dnsbl-tcp" "protocol" "TCP")) (list (dict "name" $name "protocol" "TCP")) }}
{{- $found = append $found (dict "key" $key "name" $name "section" (snakecase $key) "containerPort" (int $one.port) "port" (int $one.servicePort) "type" $one.serviceType "ports" $ports) }}
{{- end }}
{{- end }}
{{- toYaml $found }}
{{- end }}

{{/* config.yaml: .Values.config, overridden by the keys that the chart sets. */}}
{{- define "banmesh.config" -}}
{{- $address := .Values.listenAddress }}
{{- $seed := printf "%s-headless.%s.svc.%s:%d" (include "banmesh.fullname" .) .Release.Namespace .Values.clusterDomain (int .Values.cluster.port) }}
{{- $tls := dict "enabled" .Values.syslog.tls.enabled }}
{{- if .Values.syslog.tls.enabled }}
{{- $files := "/etc/banmesh/syslog-tls" }}
{{- $tls = dict "enabled" true "address" (include "banmesh.listen" (list $address .Values.syslog.tls.port)) "certificate" (printf "%s/tls.crt" $files) "key" (printf "%s/tls.key" $files) "client_ca" (.Values.syslog.tls.clientCaKey | empty | not | ternary (printf "%s/%s" $files .Values.syslog.tls.clientCaKey) "") }}
{{- end }}
{{- $cluster := dict "enabled" true "listen" (include "banmesh.listen" (list $address .Values.cluster.port)) "seeds" (concat (list $seed) .Values.cluster.extraSeeds) "secret_file" (printf "/etc/banmesh/keyring/%s" .Values.cluster.keyring.secretKey) }}
{{- /* One node has no others to wait for. It keeps its seed, for `kubectl scale`. */}}
{{- if and (eq .Values.mode "statefulset") (eq (toString .Values.replicaCount) "1") (not .Values.cluster.extraSeeds) (not (dig "cluster" "join_timeout" "" .Values.config)) }}
{{- $_ := set $cluster "join_timeout" "2s" }}
{{- end }}
{{- $set := dict
  "node" (dict "data_dir" "/var/lib/banmesh")
  "syslog" (dict "enabled" .Values.syslog.enabled "protocol" .Values.syslog.protocol "address" (include "banmesh.listen" (list $address .Values.syslog.port)) "tls" $tls)
  "spoa" (dict "enabled" true "address" $address "port" (int .Values.spop.port) "drain" (printf "%ds" (int .Values.termination.drainSeconds)))
  "cluster" $cluster
  "prometheus" (dict "enabled" .Values.metrics.enabled "address" $address "port" (int .Values.metrics.port))
  "api" (dict "enabled" .Values.api.enabled "port" (int .Values.api.port))
}}
{{- if .Values.api.enabled }}
{{- $_ := set $set "api" (dict "enabled" true "address" $address "port" (int .Values.api.port) "allowed_ips" .Values.api.allowedIps "basic_auth" (dict "enabled" (not (empty .Values.api.authSecret)))) }}
{{- end }}
{{- range include "banmesh.listeners" . | fromYamlArray }}
{{- $where := has .section (list "crowdsec" "lists") | ternary (dict "enabled" true "address" $address "port" (int .containerPort)) (dict "enabled" true "address" (include "banmesh.listen" (list $address .containerPort))) }}
{{- $_ := set $set .section $where }}
{{- end }}
{{- if .Values.filters }}
{{- $_ := set $set "filters" (dict "dirs" (append (dig "filters" "dirs" list .Values.config) "/etc/banmesh/filters")) }}
{{- end }}
{{- toYaml (mergeOverwrite (deepCopy .Values.config) $set) }}
{{- end }}

{{/* Checks that the schema cannot express. */}}
{{- define "banmesh.validate" -}}
{{- $out := add .Values.termination.preStopSeconds .Values.termination.drainSeconds }}
{{- if ge (int $out) (int .Values.termination.gracePeriodSeconds) }}
{{- fail (printf "termination.gracePeriodSeconds (%d) must be more than preStopSeconds + drainSeconds (%d), or Kubernetes kills pods that still answer" (int .Values.termination.gracePeriodSeconds) (int $out)) }}
{{- end }}
{{- if not (or .Values.cluster.keyring.existingSecret .Values.cluster.keyring.generate) }}
{{- fail "choose where the cluster's key comes from: cluster.keyring.generate=true (`helm install` creates one and keeps it), or cluster.keyring.existingSecret=NAME (a Secret that you create; required with Argo CD, Flux and `helm template`)" }}
{{- end }}
{{- if and .Values.hostNetwork (ne .Values.mode "daemonset") }}
{{- fail "hostNetwork needs mode=daemonset, because two pods on one machine would use the same ports" }}
{{- end }}
{{- if and .Values.syslog.tls.enabled (not .Values.syslog.tls.secret) }}
{{- fail "syslog.tls.enabled needs syslog.tls.secret: a Secret with tls.crt and tls.key" }}
{{- end }}
{{- $ports := dict (.Values.spop.port | int | toString) "spop.port" }}
{{- $others := list (list "cluster.port" .Values.cluster.port) }}
{{- if and .Values.syslog.enabled (ne .Values.syslog.protocol "udp") }}
{{- $others = append $others (list "syslog.port" .Values.syslog.port) }}
{{- end }}
{{- if .Values.syslog.tls.enabled }}
{{- $others = append $others (list "syslog.tls.port" .Values.syslog.tls.port) }}
{{- end }}
{{- if .Values.metrics.enabled }}
{{- $others = append $others (list "metrics.port" .Values.metrics.port) }}
{{- end }}
{{- if .Values.api.enabled }}
{{- $others = append $others (list "api.port" .Values.api.port) }}
{{- end }}
{{- range include "banmesh.listeners" . | fromYamlArray }}
{{- $others = append $others (list (printf "listeners.%s.port" .key) .containerPort) }}
{{- end }}
{{- range $others }}
{{- $port := index . 1 | int | toString }}
{{- if hasKey $ports $port }}
{{- fail (printf "%s and %s are both %s; use a different port for each" (get $ports $port) (index . 0) $port) }}
{{- end }}
{{- $_ := set $ports $port (index . 0) }}
{{- end }}
{{- if and .Values.syslog.enabled (ne .Values.syslog.protocol "tcp") (eq (int .Values.syslog.port) (int .Values.cluster.port)) }}
{{- fail (printf "syslog.port and cluster.port are both %d; use a different port for each" (int .Values.cluster.port)) }}
{{- end }}
{{- if and (eq .Values.service.spop.clusterIP "None") (ne .Values.service.spop.type "ClusterIP") }}
{{- fail (printf "service.spop.clusterIP=None needs service.spop.type=ClusterIP, not %s" .Values.service.spop.type) }}
{{- end }}
{{- if and .Values.api.enabled (not (or .Values.api.authSecret (dig "api" "users" dict .Values.config) (dig "api" "tokens" dict .Values.config))) }}
{{- fail "api.enabled needs api.authSecret (a Secret with username and password), or users or tokens in config.api" }}
{{- end }}
{{- range list "ingress" "httpRoute" }}
{{- if and (get $.Values .).enabled (not $.Values.api.enabled) }}
{{- fail (printf "%s.enabled needs api.enabled, because it leads to the API and the page" .) }}
{{- end }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) }}
{{- fail "ingress.enabled needs ingress.host: without it, every host of the controller would show the page" }}
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs: the Gateway" }}
{{- end }}
{{- if and .Values.metrics.podMonitor.enabled .Values.metrics.serviceMonitor.enabled }}
{{- fail "metrics.podMonitor and metrics.serviceMonitor would both scrape every pod; enable one" }}
{{- end }}
{{- $nodePorts := dict }}
{{- if ne .Values.service.syslog.type "ClusterIP" }}
{{- range include "banmesh.syslogPorts" . | fromYamlArray }}
{{- if .nodePort }}
{{- $port := .nodePort | int | toString }}
{{- if hasKey $nodePorts $port }}
{{- fail (printf "service.syslog: the services of %s and %s cannot share the node port %s; use a different port for each" (get $nodePorts $port) .name $port) }}
{{- end }}
{{- $_ := set $nodePorts $port .name }}
{{- end }}
{{- end }}
{{- end }}
{{- include "banmesh.validateUpgrade" . }}
{{- if .Values.networkPolicy.enabled }}
{{- if .Values.hostNetwork }}
{{- fail "networkPolicy.enabled has no effect with hostNetwork; use the machine's firewall" }}
{{- end }}
{{- if not .Values.networkPolicy.spopFrom }}
{{- fail "networkPolicy.enabled needs networkPolicy.spopFrom: the pods of HAProxy, which could not ask otherwise" }}
{{- end }}
{{- if and (gt (len (include "banmesh.listeners" . | fromYamlArray)) 0) (not .Values.networkPolicy.listenersFrom) }}
{{- fail "networkPolicy.enabled needs networkPolicy.listenersFrom: the clients of the ports in listeners" }}
{{- end }}
{{- if and (or .Values.syslog.enabled .Values.syslog.tls.enabled) (not .Values.networkPolicy.syslogFrom) }}
{{- fail "networkPolicy.enabled needs networkPolicy.syslogFrom: the senders of log lines; or set syslog.enabled=false" }}
{{- end }}
{{- end }}
{{- end }}

{{/* What Kubernetes, or the bans, would not survive: compares with what is installed, before anything changes. `helm template` sees
     nothing there. */}}
{{- define "banmesh.validateUpgrade" -}}
{{- $full := include "banmesh.fullname" . }}
{{- $space := .Release.Namespace }}
{{- $service := lookup "v1" "Service" $space (printf "%s-spop" $full) }}
{{- if $service }}
{{- $before := eq (dig "spec" "clusterIP" "" $service) "None" }}
{{- $now := .Values.service.spop.clusterIP }}
{{- if or (ne $before (eq $now "None")) (and $now (ne $now (dig "spec" "clusterIP" $now $service))) }}
{{- fail (printf "service.spop.clusterIP cannot change from %s: Kubernetes refuses that. Delete the service first, and upgrade at once: kubectl -n %s delete service %s-spop" (dig "spec" "clusterIP" "" $service | default "an assigned address") $space $full) }}
{{- end }}
{{- end }}
{{- $set := lookup "apps/v1" (eq .Values.mode "daemonset" | ternary "DaemonSet" "StatefulSet") $space $full }}
{{- if $set }}
{{- $orphan := printf "Delete the %s first, which keeps its pods, and upgrade at once: kubectl -n %s delete %s %s --cascade=orphan" $set.kind $space (lower $set.kind) $full }}
{{- $selector := include "banmesh.selectorLabels" . | fromYaml }}
{{- if ne (toJson (dig "spec" "selector" "matchLabels" $selector $set)) (toJson $selector) }}
{{- fail (printf "the labels of the pods cannot change (nameOverride): Kubernetes refuses that. Keep the name, or install another release beside this one") }}
{{- end }}
{{- if eq $set.kind "StatefulSet" }}
{{- $claims := dig "spec" "volumeClaimTemplates" list $set }}
{{- $persistent := include "banmesh.persistent" . }}
{{- if ne (empty $claims) (empty $persistent) }}
{{- fail (printf "persistence.enabled cannot change on a StatefulSet: Kubernetes refuses that. %s" $orphan) }}
{{- end }}
{{- if $claims }}
{{- $old := (first $claims).spec }}
{{- $new := include "banmesh.volumeClaim" . | fromYaml }}
{{- range $what := list (list "size" (dig "resources" "requests" "storage" "" $old) $new.resources.requests.storage) (list "storageClass" (default "" $old.storageClassName) (default "" $new.storageClassName)) (list "accessModes" (toJson $old.accessModes) (toJson $new.accessModes)) }}
{{- $assigned := and (eq (first $what) "storageClass") (empty (last $what)) }}
{{- if and (ne (index $what 1) (last $what)) (not $assigned) }}
{{- fail (printf "persistence.%s cannot change from %s to %s on a StatefulSet: Kubernetes refuses that. %s. Volumes that exist keep their size and class" (first $what) (index $what 1) (last $what) $orphan) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- if not (include "banmesh.persistent" .) }}
{{- range (first (dig "spec" "template" "spec" "containers" (list dict) $set)).ports }}
{{- if and (eq .name "gossip-tcp") (ne (int .containerPort) (int $.Values.cluster.port)) }}
{{- fail (printf "changing cluster.port from %d to %d would lose every ban, because the pods have no volumes and new pods cannot reach old ones. Keep the port. To change it anyway, save the bans (banmesh list --json), uninstall, install and ban again" (int .containerPort) (int $.Values.cluster.port)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The fields that all services share. */}}
{{- define "banmesh.families" -}}
{{- with .Values.service.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- end }}

{{- define "banmesh.pod" -}}
metadata:
  labels:
    {{- include "banmesh.selectorLabels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: banmesh
    checksum/config: {{ include "banmesh.config" . | sha256sum }}
    {{- with .Values.filters }}
    checksum/filters: {{ toYaml . | sha256sum }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  serviceAccountName: {{ include "banmesh.serviceAccountName" . }}
  automountServiceAccountToken: false
  # Otherwise a Service named fail2ban-… would add variables here that look like configuration.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ .Values.termination.gracePeriodSeconds }}
  {{- if .Values.hostNetwork }}
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- end }}
  {{- with .Values.dnsConfig }}
  dnsConfig:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.hostAliases }}
  hostAliases:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .Values.schedulerName }}
  schedulerName: {{ . }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if eq .Values.mode "statefulset" }}
  topologySpreadConstraints:
    {{- if .Values.topologySpreadConstraints }}
    {{- toYaml .Values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "banmesh.selectorLabels" $ | nindent 10 }}
    {{- end }}
    {{- end }}
  {{- end }}
  {{- with .Values.initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: banmesh
      image: {{ include "banmesh.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [run, --config, /etc/banmesh/config.yaml]
      env:
        - name: FAIL2BAN_NODE_ID
          valueFrom:
            fieldRef:
              # In mode daemonset the machine's name, so that a replaced pod is the same node.
              fieldPath: {{ eq .Values.mode "daemonset" | ternary "spec.nodeName" "metadata.name" }}
        - name: FAIL2BAN_CLUSTER_ADVERTISE
          valueFrom:
            fieldRef:
              fieldPath: status.podIP
        - name: BANMESH_SOCKET
          value: /var/lib/banmesh/banmesh.sock
        {{- if and .Values.api.enabled .Values.api.authSecret }}
        {{- range list "username" "password" }}
        - name: FAIL2BAN_API_BASIC_AUTH_{{ upper . }}
          valueFrom:
            secretKeyRef:
              name: {{ $.Values.api.authSecret }}
              key: {{ . }}
        {{- end }}
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .Values.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: spop
          containerPort: {{ .Values.spop.port }}
        - name: gossip-udp
          containerPort: {{ .Values.cluster.port }}
          protocol: UDP
        - name: gossip-tcp
          containerPort: {{ .Values.cluster.port }}
        {{- range include "banmesh.syslogPorts" . | fromYamlArray }}
        - name: {{ .name }}
          containerPort: {{ .containerPort }}
          protocol: {{ .protocol }}
        {{- end }}
        {{- range $listener := include "banmesh.listeners" . | fromYamlArray }}
        {{- range $listener.ports }}
        - name: {{ .name }}
          containerPort: {{ $listener.containerPort }}
          protocol: {{ .protocol }}
        {{- end }}
        {{- end }}
        {{- if .Values.api.enabled }}
        - name: api
          containerPort: {{ .Values.api.port }}
        {{- end }}
        {{- if .Values.metrics.enabled }}
        - name: metrics
          containerPort: {{ .Values.metrics.port }}
        {{- end }}
      startupProbe:
        exec:
          command: [/banmesh, ping]
        {{- toYaml .Values.probes.startup | nindent 8 }}
      livenessProbe:
        exec:
          command: [/banmesh, ping]
        {{- toYaml .Values.probes.liveness | nindent 8 }}
      readinessProbe:
        exec:
          command: [/banmesh, ping, --ready]
        {{- toYaml .Values.probes.readiness | nindent 8 }}
      {{- if .Values.lifecycle }}
      lifecycle:
        {{- toYaml .Values.lifecycle | nindent 8 }}
      {{- else if and (gt (int .Values.termination.preStopSeconds) 0) (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version) }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ .Values.termination.preStopSeconds }}
      {{- end }}
      securityContext:
        {{- toYaml .Values.securityContext | nindent 8 }}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        - name: config
          mountPath: /etc/banmesh/config.yaml
          subPath: config.yaml
          readOnly: true
        # A directory, not a subPath, so that a changed Secret appears while the pod runs.
        - name: keyring
          mountPath: /etc/banmesh/keyring
          readOnly: true
        {{- if .Values.syslog.tls.enabled }}
        - name: syslog-tls
          mountPath: /etc/banmesh/syslog-tls
          readOnly: true
        {{- end }}
        {{- if .Values.filters }}
        - name: filters
          mountPath: /etc/banmesh/filters
          readOnly: true
        {{- end }}
        {{- range $index, $secret := .Values.secretFiles }}
        - name: secret-{{ $index }}
          mountPath: /etc/banmesh/secrets/{{ $secret }}
          readOnly: true
        {{- end }}
        - name: data
          mountPath: /var/lib/banmesh
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "banmesh.fullname" . }}
    - name: keyring
      secret:
        secretName: {{ include "banmesh.keyringSecret" . }}
        defaultMode: 0440
    {{- if .Values.syslog.tls.enabled }}
    - name: syslog-tls
      secret:
        secretName: {{ .Values.syslog.tls.secret }}
        defaultMode: 0440
    {{- end }}
    {{- if .Values.filters }}
    - name: filters
      configMap:
        name: {{ include "banmesh.fullname" . }}-filters
    {{- end }}
    {{- range $index, $secret := .Values.secretFiles }}
    - name: secret-{{ $index }}
      secret:
        secretName: {{ $secret }}
        defaultMode: 0440
    {{- end }}
    {{- if not (include "banmesh.persistent" .) }}
    - name: data
      emptyDir: {}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
