"""Tests of the chart: lint, a matrix of values and versions against Kubernetes' schemas, refusals, and what must fit together.

Run by `scripts/test-packaging chart`: python helm/test_chart.py BANMESH
"""

import base64
import concurrent.futures
import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import yaml

from rendering import (API, ASKED, BIN, CHART, DAEMONSET, FIRST_WITH_PRESTOP, NEWEST, OLDEST, POLICY, TLS, WORK, check, configuration, failures, merged, objects_of,
                       of_kind, run, template)
from test_install import installs_and_keeps_the_key
from test_policy import policies
from test_values import values_and_schema

BANMESH = sys.argv[1]
CERTIFICATES = WORK / "certificates"
UNKNOWN_KINDS = ("ServiceMonitor", "PodMonitor", "PrometheusRule", "HTTPRoute")
checked = set()


def structure(objects, label):
    """What no schema sees: names, selectors and ports that must fit."""
    workload = (of_kind(objects, "StatefulSet") + of_kind(objects, "DaemonSet"))[0]
    pod = workload["spec"]["template"]
    labels = pod["metadata"]["labels"]
    spec = pod["spec"]
    node = spec["containers"][0]
    ports = {p["name"]: p for p in node["ports"]}
    config = yaml.safe_load(configuration(objects))
    services = {s["metadata"]["name"]: s for s in of_kind(objects, "Service")}
    all_ports = {p["name"]: p for c in spec["containers"] for p in c.get("ports", [])}

    def matches(selector, found):
        return all(found.get(k) == v for k, v in selector.items())

    check(matches(workload["spec"]["selector"]["matchLabels"], labels), f"{label}: the workload selects its pods")
    for name, service in services.items():
        check(matches(service["spec"]["selector"], labels), f"{label}: {name} selects the pods")
        for port in service["spec"]["ports"]:
            target = all_ports.get(port["targetPort"])
            check(target is not None, f"{label}: {name} leads to a port that exists")
            if target:
                check(target.get("protocol", "TCP") == port.get("protocol", "TCP"), f"{label}: {name}: protocol")
        for other in of_kind(objects, "Job"):
            check(not matches(service["spec"]["selector"], other["spec"]["template"]["metadata"]["labels"]), f"{label}: {name} leaves others alone")
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        for found in of_kind(objects, kind):
            selector = found["spec"].get("selector", found["spec"].get("podSelector"))["matchLabels"]
            check(matches(selector, labels), f"{label}: {kind} selects the pods")
    for constraint in spec.get("topologySpreadConstraints", []):
        check(matches(constraint["labelSelector"]["matchLabels"], labels), f"{label}: the pods are spread among themselves")
    check(workload["kind"] == "DaemonSet" or len(spec["topologySpreadConstraints"]) == 2, f"{label}: over machines and zones")
    for found in of_kind(objects, "ServiceMonitor"):
        selected = [n for n, s in services.items() if matches(found["spec"]["selector"]["matchLabels"], s["metadata"]["labels"])]
        check(len(selected) == 1 and selected[0].endswith("-metrics"), f"{label}: ServiceMonitor selects the metrics alone: {selected}")
    # Policies name ports of the pod.
    for policy in of_kind(objects, "NetworkPolicy"):
        # The one of `helm test` has no members.
        of_test = "helm.sh/hook" in policy["metadata"].get("annotations", {})
        for rule in policy["spec"]["ingress"]:
            check(rule["from"], f"{label}: a rule without `from` would let everybody in")
            for port in rule["ports"]:
                check(ports[port["port"]].get("protocol", "TCP") == port["protocol"], f"{label}: policy port {port}")
        first = policy["spec"]["ingress"][0]
        check(matches(first["from"][0]["podSelector"]["matchLabels"], labels) != of_test, f"{label}: gossip is for members")
    # Seeds, ports and paths agree with the configuration.
    headless = [s for s in services.values() if s["metadata"]["name"].endswith("-headless")][0]
    check(headless["spec"]["clusterIP"] == "None" and headless["spec"]["publishNotReadyAddresses"] is True, f"{label}: headless")
    if workload["kind"] == "StatefulSet":
        check(workload["spec"]["serviceName"] == headless["metadata"]["name"], f"{label}: serviceName exists")
    seed, port = config["cluster"]["seeds"][0].rsplit(":", 1)
    check(seed.startswith(f"{headless['metadata']['name']}.edge.svc."), f"{label}: the seed is the headless service")
    check(int(port) == ports["gossip-udp"]["containerPort"] == ports["gossip-tcp"]["containerPort"], f"{label}: gossip port")
    check(config["cluster"]["listen"].endswith(f":{port}"), f"{label}: cluster.listen")
    check(config["spoa"]["port"] == ports["spop"]["containerPort"], f"{label}: SPOP port")
    syslog, tls = config["syslog"], config["syslog"]["tls"]
    for protocol in ("udp", "tcp", "tls"):
        wanted = tls["enabled"] if protocol == "tls" else syslog["enabled"] and syslog["protocol"] in (protocol, "both")
        check((f"syslog-{protocol}" in ports) == wanted, f"{label}: syslog over {protocol}")
        check(any(n.endswith(f"-syslog-{protocol}") for n in services) == wanted, f"{label}: service for {protocol}")
        if wanted:
            address = (tls if protocol == "tls" else syslog)["address"]
            check(address.endswith(f":{ports[f'syslog-{protocol}']['containerPort']}"), f"{label}: the port of {protocol}: {address}")
        for policy in of_kind(objects, "NetworkPolicy")[:1]:
            opened = [p["port"] for rule in policy["spec"]["ingress"] for p in rule["ports"]]
            check((f"syslog-{protocol}" in opened) == wanted, f"{label}: the policy and syslog over {protocol}")
    image_overrides_nothing(config, label)
    for section, port in (("verdict", "verdict"), ("crowdsec", "crowdsec"), ("lists", "lists"), ("dnsbl", "dnsbl-udp"), ("policy", "policy"),
                          ("auth_policy", "auth-policy")):
        if port in ports:
            found = config[section]
            listens = str(found.get("port") or found["address"].rsplit(":", 1)[1])
            check(found["enabled"] and listens == str(ports[port]["containerPort"]), f"{label}: {section} listens on the port of its service")
            check(any(n.endswith(port.removesuffix("-udp")) for n in services), f"{label}: a service for {section}")
    check(config["prometheus"]["enabled"] == ("metrics" in ports), f"{label}: metrics port")
    mounts = {m["mountPath"]: m for m in node["volumeMounts"]}
    check(config["cluster"]["secret_file"].rsplit("/", 1)[0] in mounts, f"{label}: the keyring is mounted")
    check(config["node"]["data_dir"] in mounts, f"{label}: the data directory is mounted")
    for file in filter(None, (tls.get(key) for key in ("certificate", "key", "client_ca"))):
        check(file.rsplit("/", 1)[0] in mounts, f"{label}: {file} is mounted")
    volumes = {v["name"] for v in spec["volumes"]} | {c["metadata"]["name"] for c in workload["spec"].get("volumeClaimTemplates", [])}
    for container in spec["containers"]:
        for mount in container.get("volumeMounts", []):
            check(mount["name"] in volumes, f"{label}: volume {mount['name']} exists")
        security = container.get("securityContext", {})
        check(security.get("readOnlyRootFilesystem") and security["capabilities"]["drop"] == ["ALL"], f"{label}: hardened")
    # The way out.
    before = node.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain = int(config["spoa"]["drain"].rstrip("s"))
    check(before + drain < spec["terminationGracePeriodSeconds"], f"{label}: the grace period covers the way out")
    env = {e["name"]: e for e in node["env"]}
    check({"FAIL2BAN_NODE_ID", "FAIL2BAN_CLUSTER_ADVERTISE"} <= set(env), f"{label}: identity")
    # Secrets: the one that is made holds a key that banmesh takes.
    secrets = of_kind(objects, "Secret")
    for secret in secrets:
        check(secret["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade", f"{label}: the key is kept")
        key = base64.b64decode(next(iter(secret["data"].values()))).decode()
        check(len(base64.b64decode(key)) == 32, f"{label}: a key of 32 bytes")
    check_configuration(configuration(objects), env, label)
    for rule in of_kind(objects, "PrometheusRule"):
        alerts(rule["spec"], workload["metadata"]["name"], label)
    for found in of_kind(objects, "ConfigMap"):
        if "banmesh.json" in found["data"]:
            shipped = json.loads((CHART / "files/banmesh.json").read_text())
            check(json.loads(found["data"]["banmesh.json"]) == shipped, f"{label}: the dashboard")
            check(found["metadata"]["labels"].get("grafana_dashboard") == "1", f"{label}: Grafana's sidecar finds the dashboard")


def image_overrides_nothing(config, label):
    """A variable of the image wins over the mounted configuration, whose keys the chart sets."""
    for file in ("Dockerfile", "Dockerfile.prebuilt"):
        set_by_image = re.findall(r"FAIL2BAN_\w+(?==)", (CHART.parents[1] / "deploy/docker" / file).read_text())
        for name in set_by_image:
            section, _, key = name.removeprefix("FAIL2BAN_").lower().partition("_")
            check(key not in config.get(section, {}), f"{label}: {file} sets {name}, which overrides the chart's {section}.{key}")


def alerts(spec, name, label):
    """The shipped alerts, about this release's nodes."""
    shipped = yaml.safe_load((CHART / "files/banmesh.rules.yaml").read_text())

    def names(groups):
        return [rule.get("alert") or rule["record"] for group in groups for rule in group["rules"]]

    check(names(spec["groups"]) == names(shipped["groups"]), f"{label}: the alerts")
    jobs = [m for group in spec["groups"] for rule in group["rules"] for m in re.findall(r'job(=~?"[^"]*")', rule["expr"])]
    check(jobs and set(jobs) == {f'="{name}-metrics"'}, f"{label}: the alerts' jobs: {jobs}")
    promtool = shutil.which("promtool") or shutil.which(CHART.parents[1] / ".prometheus/usr/bin/promtool")
    check(promtool or not os.environ.get("CI"), "promtool must not be missing in CI: scripts/install-test-tools fetches it")
    if promtool:
        file = WORK / "rules.yaml"
        file.write_text(yaml.safe_dump(spec))
        done = run(promtool, "check", "rules", file)
        check(done.returncode == 0, f"{label}: promtool: {done.stdout}{done.stderr}")


def check_configuration(text, env, label):
    # Versions of Kubernetes make no difference to it.
    if text in checked:
        return
    checked.add(text)
    file = WORK / "config.yaml"
    given = {"FAIL2BAN_NODE_ID": "t-banmesh-0", "FAIL2BAN_CLUSTER_ADVERTISE": "10.1.2.3"}
    given |= {name: "secret" for name in env if name.startswith("FAIL2BAN_API")}
    # What a Secret and a ConfigMap would put there.
    text = text.replace("/etc/banmesh/syslog-tls", str(CERTIFICATES)).replace("/etc/banmesh/filters", str(CERTIFICATES))
    file.write_text(text)
    done = subprocess.run([BANMESH, "check", "--offline", "--config", file], env=given, capture_output=True, text=True)
    check(done.returncode == 0, f"{label}: banmesh check: {done.stdout}{done.stderr}")


def valid(rendered, label, version):
    """Keeps what was rendered for `all_valid`: starting the validator takes longer than its work."""
    file = WORK / version / (label.replace(" ", "-").replace(",", "") + ".yaml")
    file.parent.mkdir(exist_ok=True)
    file.write_text(rendered)


def all_valid():
    def judge(directory):
        return directory, run(BIN / "kubernetes-validate", "--strict", "-k", directory.name, *sorted(directory.iterdir()))

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        judged = list(pool.map(judge, WORK.glob("1.*")))
    check(len(judged) == 3, "three versions were judged")
    for directory, done in judged:
        text = done.stdout + done.stderr
        check(done.returncode == 0, f"kubernetes-validate {directory.name}: {text}")
        # A kind that it does not know is a warning only.
        for line in text.splitlines():
            if "WARN" in line:
                check(any(kind in line for kind in UNKNOWN_KINDS), line)


CASES = {
    "defaults": {},
    "one": {"replicaCount": 1, "persistence": {"enabled": False}, "podDisruptionBudget": {"enabled": False}},
    "five": {"replicaCount": 5, "service": {"ipFamilyPolicy": "PreferDualStack"}},
    "daemonset": DAEMONSET,
    "host network": merged(DAEMONSET, {"hostNetwork": True}),
    "ipv6": {"listenAddress": "::"},
    "udp": {"syslog": {"protocol": "udp"}},
    "tcp": {"syslog": {"protocol": "tcp"}, "service": {"syslog": {"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24"]}}},
    "tls beside": merged(TLS, POLICY, {"service": {"syslog": {"type": "NodePort", "udpNodePort": 30514, "tcpNodePort": 30515, "tlsNodePort": 30614}}}),
    "tls alone": merged(TLS, POLICY, {"syslog": {"enabled": False, "tls": {"clientCaKey": "ca.crt"}}}),
    "no syslog": {"syslog": {"enabled": False}},
    "no metrics": {"metrics": {"enabled": False}},
    "monitored": {"metrics": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}}},
    "policy": POLICY,
    "api": API,
    "asked by others": ASKED,
    "page in public": merged(API, {"ingress": {"enabled": True, "host": "bans.example.org", "tlsSecret": "page"},
                                   "httpRoute": {"enabled": True, "parentRefs": [{"name": "edge"}]}}),
    "several users": {"api": {"enabled": True}, "secretFiles": ["people"],
                      "config": {"api": {"users": {"ann": {"role": "operate", "password_hash": "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$RdescudvJCsgt3ub+b7dWRWJTmaaJObG"}}}}},
    "pods monitored": {"metrics": {"podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}},
    "autoscaled": {"replicaCount": None},
    "own filters": {"filters": {"mine.yaml": "name: mine\n"}},
    "labelled": {"commonLabels": {"team": "edge"}, "workloadAnnotations": {"a": "b"}, "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["a"]}],
                 "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}, "initContainers": [{
                     "name": "first", "image": "busybox:1.36", "securityContext": {"readOnlyRootFilesystem": True}}],
                 "extraEnvFrom": [{"secretRef": {"name": "webhooks"}}]},
    "all": merged(POLICY, API, {"metrics": {"serviceMonitor": {"enabled": True}}, "networkPolicy": {"apiFrom": [{"podSelector": {}}]}}),
    "secret": {"cluster": {"keyring": {"existingSecret": "mine", "secretKey": "keys"}, "extraSeeds": ["node1.example.org:12350"]}},
    "names": {"fullnameOverride": "a-name-that-is-longer-than-anybody-would-think-of-giving"},
    "configured": {"config": {"ban": {"max_attempts": 3, "initial_ban_time": "1h30m"}, "filters": {"enabled": ["all"]},
                              "syslog": {"allowed_senders": ["192.0.2.0/24"], "receive_buffer": "8MiB"},
                              "spoa": {"max_clients": 1000}, "cluster": {"profile": "wan"}}},
    "scheduled": {"nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}], "priorityClassName": "high",
                  "runtimeClassName": "gvisor", "schedulerName": "other", "revisionHistoryLimit": 3, "minReadySeconds": 5,
                  "affinity": {"nodeAffinity": {}}, "imagePullSecrets": [{"name": "pull"}], "podAnnotations": {"a": "b"},
                  "image": {"digest": "sha256:" + "0" * 64}, "extraEnv": [{"name": "TZ", "value": "UTC"}]},
}
# What is refused, and what is said about it.
REFUSED = {
    "unknown key": ({"replicas": 3}, "Additional property replicas"),
    "unknown key below": ({"spop": {"prot": 1}}, "spop: Additional property prot"),
    "unknown key of banmesh": ({"config": {"ban": {"max_atempts": 3}}}, "config.ban: Additional property max_atempts"),
    "a key that the chart sets": ({"config": {"spoa": {"port": 1}}}, "config.spoa: Additional property port"),
    "the drain": ({"config": {"spoa": {"drain": "3s"}}}, "config.spoa: Additional property drain"),
    "no duration": ({"config": {"ban": {"time_window": "10"}}}, "config.ban.time_window"),
    "no network": ({"config": {"allowlist": ["not a name"]}}, "config.allowlist.0"),
    "no replicas": ({"replicaCount": 0}, "replicaCount: Must be greater than or equal to 1"),
    "text for a number": ({"replicaCount": "3"}, "replicaCount: Invalid type"),
    "privileged port": ({"syslog": {"port": 514}}, "syslog.port: Must be greater than or equal to 1024"),
    "protocol": ({"syslog": {"protocol": "sctp"}}, '"udp", "tcp", "both"'),
    "seed without port": ({"cluster": {"extraSeeds": ["node1"]}}, "cluster.extraSeeds.0"),
    "digest": ({"image": {"digest": "sha256:1"}}, "image.digest"),
    "image": ({"image": {"repository": "Example/banmesh"}}, "image.repository"),
    "name": ({"fullnameOverride": "a_name"}, "fullnameOverride"),
    "mode": ({"mode": "deployment"}, '"statefulset", "daemonset"'),
    "grace": ({"termination": {"drainSeconds": 30}}, "gracePeriodSeconds (30) must be more than preStopSeconds + drainSeconds (35)"),
    "one node port for two services": ({"service": {"syslog": {"type": "NodePort", "udpNodePort": 30514, "tcpNodePort": 30514}}},
                                       "the services of syslog-udp and syslog-tcp cannot share the node port 30514"),
    "the old node port": ({"service": {"syslog": {"nodePort": 30514}}}, "Additional property nodePort"),
    "page without API": ({"ingress": {"enabled": True, "host": "a.example"}}, "ingress.enabled needs api.enabled"),
    "page on every host": (merged(API, {"ingress": {"enabled": True}}), "ingress.enabled needs ingress.host"),
    "route without Gateway": (merged(API, {"httpRoute": {"enabled": True}}), "httpRoute.enabled needs httpRoute.parentRefs"),
    "scraped twice": ({"metrics": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}}, "enable one"),
    "one port for two listeners": ({"listeners": {"policy": {"enabled": True, "port": 12345}}}, "spop.port and listeners.policy.port are both 12345"),
    "policy that locks askers out": (merged(POLICY, {"listeners": {"policy": {"enabled": True}}}), "needs networkPolicy.listenersFrom"),
    "a filter without its ending": ({"filters": {"mine": "x"}}, "filters"),
    "two pods on one machine": (merged(DAEMONSET, {"updateStrategy": {"rollingUpdate": {"maxSurge": 1}}}), "property maxSurge"),
    "host network": ({"hostNetwork": True}, "hostNetwork needs mode=daemonset"),
    "TLS without a certificate": ({"syslog": {"tls": {"enabled": True}}}, "syslog.tls.enabled needs syslog.tls.secret"),
    "one port for TLS and TCP": (merged(TLS, {"syslog": {"port": 6514}}), "syslog.port and syslog.tls.port are both 6514"),
    "one port for two": ({"spop": {"port": 2112}}, "spop.port and metrics.port are both 2112"),
    "one port for gossip and lines": ({"syslog": {"port": 12350, "protocol": "udp"}}, "syslog.port and cluster.port are both 12350"),
    "the files of TLS": ({"config": {"syslog": {"tls": {"certificate": "/a"}}}}, "config.syslog: Additional property tls"),
    "API without a password": ({"api": {"enabled": True}}, "api.enabled needs api.authSecret"),
    "headless and more": ({"service": {"spop": {"clusterIP": "None", "type": "NodePort"}}}, "clusterIP=None needs service.spop.type=ClusterIP"),
    "policy that locks HAProxy out": ({"networkPolicy": {"enabled": True}}, "networkPolicy.enabled needs networkPolicy.spopFrom"),
    "policy that locks the senders out": ({"networkPolicy": {"enabled": True, "spopFrom": [{"podSelector": {}}]}}, "needs networkPolicy.syslogFrom"),
    "policy on the machine's network": (merged(POLICY, DAEMONSET, {"hostNetwork": True}), "use the machine's firewall"),
    # Kubernetes would drop the key, and the whole namespace could ask.
    "misspelled peer": (merged(POLICY, {"networkPolicy": {"spopFrom": [{"namespaceSelector": {}, "podSelecter": {}}]}}), "property podSelecter"),
    "anybody as peer": (merged(POLICY, {"networkPolicy": {"spopFrom": [{}]}}), "networkPolicy.spopFrom.0"),
    "misspelled right": ({"podSecurityContext": {"runAsUsr": 1}}, "podSecurityContext: Additional property runAsUsr"),
    "the selector's label": ({"podLabels": {"app.kubernetes.io/component": "web"}}, "podLabels"),
}


def main():
    CERTIFICATES.mkdir()
    certificate = run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=banmesh", "-days", "2",
                      "-keyout", CERTIFICATES / "tls.key", "-out", CERTIFICATES / "tls.crt")
    check(certificate.returncode == 0, certificate.stderr)
    shutil.copy(CERTIFICATES / "tls.crt", CERTIFICATES / "ca.crt")
    lint = run(BIN / "helm", "lint", "--strict", CHART)
    check(lint.returncode == 0, lint.stdout + lint.stderr)
    rendered = 0
    matrix = list(itertools.product(CASES.items(), (OLDEST, FIRST_WITH_PRESTOP, NEWEST)))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        all_done = pool.map(lambda case: template(values=case[0][1], kube=case[1]), matrix)
        for ((label, _), kube), done in zip(matrix, all_done):
            if done.returncode:
                check(False, f"{label}: {done.stderr}")
                continue
            structure(objects_of(done.stdout), f"{label}, {kube}")
            valid(done.stdout, label, kube.rsplit(".", 1)[0])
            rendered += 1
    for example in sorted((CHART / "examples").glob("*.yaml")):
        done = template("-f", example, kube=NEWEST)
        check(done.returncode == 0, f"{example.name}: {done.stderr}")
        if done.returncode == 0:
            structure(objects_of(done.stdout), example.name)
            valid(done.stdout, example.name, NEWEST.rsplit(".", 1)[0])
            rendered += 1
    all_valid()
    for label, (values, text) in REFUSED.items():
        done = template(values=values)
        check(done.returncode != 0 and text in done.stderr, f"refused: {label}: {done.stderr or 'no, accepted'}")
    done = template(kube="1.24.0")
    check(done.returncode != 0 and "incompatible" in done.stderr, f"Kubernetes 1.24: {done.stderr}")
    configuration_changes_roll()
    one_replica_waits_for_nobody()
    differs_by_version()
    for part in (ingress_controllers, values_and_schema, policies, installs_and_keeps_the_key):
        print(f"chart: {part()}")
    print(f"chart: {rendered} renderings, {len(REFUSED)} refusals, {len(failures)} failures")
    return 1 if failures else 0


def one_replica_waits_for_nobody():
    def waits(values):
        return yaml.safe_load(configuration(objects_of(template(values=values).stdout)))["cluster"].get("join_timeout")

    found = [waits(values) for values in ({"replicaCount": 1}, {"replicaCount": 2}, {"replicaCount": None}, {"replicaCount": 1, "mode": "daemonset"},
                                          {"replicaCount": 1, "config": {"cluster": {"join_timeout": "7s"}}})]
    check(found == ["2s", None, None, None, "7s"], f"how long nodes wait for others: {found}")


def ingress_controllers():
    """The values for ingress controllers: what they put into HAProxy's configuration is valid, and refuses banned clients."""
    example = template("-f", CHART / "examples/values-ingress-controller.yaml", name="banmesh").stdout
    config_map = next(o for o in of_kind(objects_of(example), "ConfigMap") if o["metadata"]["name"] == "banmesh-haproxy")
    spoe = WORK / "spoe-ip-reputation.conf"
    spoe.write_text(config_map["data"]["spoe-ip-reputation.conf"])
    services = {s["metadata"]["name"] for s in of_kind(objects_of(example), "Service")}
    checked_by = 0
    for name, frontend, sections in (("kubernetes-ingress", "frontend-config-snippet", None), ("haproxy-ingress", "config-frontend-early", "config-sections")):
        text = (CHART / "ingress" / f"{name}.yaml").read_text()
        values = yaml.safe_load(text)["controller"]
        check(values["extraVolumes"][0]["configMap"]["name"] == "banmesh-haproxy", f"{name}: the SPOE file of the example")
        for service in re.findall(r"(banmesh-[\w-]+)\.edge\.svc", text):
            check(service in services, f"{name}: {service} is a service of the example")
        rules = values["config"][frontend].replace("/etc/banmesh-haproxy/spoe-ip-reputation.conf", str(spoe))
        added = values["config"][sections] if sections else values["auxiliaryConfig"]
        file = WORK / f"{name}.cfg"
        file.write_text("global\n    stats socket /run/x.sock level admin\ndefaults\n    mode http\n    timeout connect 5s\n    timeout client 50s\n    timeout server 50s\n"
                        f"frontend http\n    bind 127.0.0.1:8080\n{rules}    http-request return status 200\n{added}")
        for version in ("2.6", "3.0", "3.2", "3.4"):
            done = run(BANMESH, "haproxy", "check", "--haproxy", version, file, "--strict")
            check(done.returncode == 0, f"{name}, HAProxy {version}: banmesh haproxy check: {done.stdout}{done.stderr}")
            haproxy = CHART.parents[1] / ".haproxy" / version / "haproxy"
            if haproxy.exists():
                done = run(haproxy, "-c", "-f", file)
                check(done.returncode == 0, f"{name}, HAProxy {version}: {done.stdout}{done.stderr}")
                checked_by += 1
    return f"the values for two ingress controllers are valid, by {checked_by} runs of HAProxy"


def configuration_changes_roll():
    def annotation(values):
        objects = objects_of(template(values=values).stdout)
        return of_kind(objects, "StatefulSet")[0]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    before, again = annotation({}), annotation({"replicaCount": 5})
    check(before == again, "scaling must not restart pods")
    check(before != annotation({"config": {"ban": {"max_attempts": 3}}}), "a change of the configuration restarts pods")


def differs_by_version():
    """What older versions do not know is left out there, and is there from the first that knows it."""
    for kube in (OLDEST, "1.26.0", "1.27.0", "1.29.0", FIRST_WITH_PRESTOP, NEWEST):
        minor = int(kube.split(".")[1])
        spec = of_kind(objects_of(template(kube=kube).stdout), "StatefulSet")[0]["spec"]
        check(("persistentVolumeClaimRetentionPolicy" in spec) == (minor >= 27), f"{kube}: what becomes of the volumes")
        check(("lifecycle" in spec["template"]["spec"]["containers"][0]) == (minor >= 30), f"{kube}: preStop")


if __name__ == "__main__":
    sys.exit(main())
