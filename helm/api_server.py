"""What Helm needs of a Kubernetes API server, over HTTP on a port of the loopback: discovery, objects that are kept, and pods that
succeed at once. It judges nothing: kubernetes-validate does that."""

import base64
import http.server
import json
import threading
import urllib.parse

RESOURCES = {
    "/api/v1": {"namespaces": "Namespace", "secrets": "Secret", "configmaps": "ConfigMap", "services": "Service",
                "serviceaccounts": "ServiceAccount", "pods": "Pod"},
    "/apis/batch/v1": {"jobs": "Job"},
    "/apis/apps/v1": {"statefulsets": "StatefulSet", "daemonsets": "DaemonSet"},
    "/apis/policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "/apis/networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
}


def merged(target, patch):
    """JSON merge patch; the directives of strategic merge patches are left out."""
    if not isinstance(patch, dict) or not isinstance(target, dict):
        return patch
    out = dict(target)
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merged(out.get(key), value) if isinstance(value, dict) else value
    return out


def fields(message):
    """The fields of a message in protobuf, as (number, bytes), those of variable length alone."""
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = number()
        if tag & 7 == 0:
            number()
        else:
            assert tag & 7 == 2, "nothing else is used here"
            length = number()
            yield tag >> 3, message[at:at + length]
            at += length


def entries(message, field):
    """A map of texts to bytes."""
    pairs = [dict(fields(value)) for tag, value in fields(message) if tag == field]
    return {pair[1].decode(): pair.get(2, b"") for pair in pairs}


def decoded(body):
    """An object, as JSON or as Kubernetes' protobuf: Helm keeps its releases in Secrets of that form."""
    if not body.startswith(b"k8s\0"):
        return json.loads(body)
    raw = dict(fields(body[4:]))[2]
    meta = dict(fields(raw))[1]
    texts = {tag: {key: value.decode() for key, value in entries(meta, tag).items()} for tag in (11, 12)}
    return {"metadata": {"name": dict(fields(meta))[1].decode(), "labels": texts[11], "annotations": texts[12]},
            "type": dict(fields(raw)).get(3, b"").decode(),
            "data": {key: base64.b64encode(value).decode() for key, value in entries(raw, 2).items()}}


class ApiServer:
    def __init__(self):
        # By kind, namespace and name.
        self.objects = {}
        # What was created and deleted, in order: (verb, kind, name).
        self.log = []
        self.lock = threading.Lock()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def handle_any(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                # What deletions say is how, which is all the same here.
                body = decoded(body) if body and self.command != "DELETE" else None
                with server.lock:
                    status, answer = server.answer(self.command, self.path, body)
                # No schemas, in the form that clients ask for: an empty message of protobuf.
                text = b"" if self.path.startswith("/openapi/v2") else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def kubeconfig(self):
        address = f"http://127.0.0.1:{self.http.server_address[1]}"
        return {"apiVersion": "v1", "kind": "Config", "current-context": "test", "users": [{"name": "test", "user": {}}],
                "clusters": [{"name": "test", "cluster": {"server": address}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}]}

    def get(self, kind, name, namespace="edge"):
        return self.objects.get((kind, namespace, name))

    def names(self):
        """All that is there but Helm's own."""
        return {(kind, name) for kind, _, name in self.objects if not name.startswith("sh.helm.") and kind != "Namespace"}

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def answer(self, verb, path, body):
        parsed = urllib.parse.urlsplit(path)
        query = urllib.parse.parse_qs(parsed.query)
        path = parsed.path.rstrip("/")
        if path == "/openapi/v2":
            return 200, None
        if path == "/version":
            return 200, {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = [each.split("/")[2] for each in RESOURCES if each.startswith("/apis/")]
            versions = [{"groupVersion": f"{group}/v1", "version": "v1"} for group in groups]
            return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": [
                {"name": group, "versions": [version], "preferredVersion": version} for group, version in zip(groups, versions)]}
        if path in RESOURCES:
            verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
            return 200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": path.split("/", 2)[2], "resources": [
                {"name": plural, "singularName": "", "namespaced": kind != "Namespace", "kind": kind, "verbs": verbs}
                for plural, kind in RESOURCES[path].items()]}
        base = next((each for each in RESOURCES if path.startswith(each + "/")), None)
        if base is None:
            return self.missing(path)
        parts = path[len(base) + 1:].split("/")
        namespace = ""
        if parts[0] == "namespaces" and len(parts) > 2:
            namespace, parts = parts[1], parts[2:]
        kind = RESOURCES[base].get(parts[0])
        if kind is None:
            return self.missing(path)
        return self.about(verb, base, kind, namespace, parts[1] if len(parts) > 1 else None, query, body)

    def about(self, verb, base, kind, namespace, name, query, body):
        if verb == "GET" and name is None:
            wanted = dict(each.split("=", 1) for each in ",".join(query.get("labelSelector", [])).split(",") if "=" in each)
            fields = query.get("fieldSelector", [""])[0]
            found = [o for (of, space, called), o in sorted(self.objects.items()) if of == kind and space == namespace
                     and all(o["metadata"].get("labels", {}).get(k) == v for k, v in wanted.items())
                     and (not fields or fields == f"metadata.name={called}")]
            return 200, {"kind": kind + "List", "apiVersion": base.split("/", 2)[2], "metadata": {"resourceVersion": "1"}, "items": found}
        if verb == "POST":
            name = body["metadata"]["name"]
            if (kind, namespace, name) in self.objects:
                return 409, status(409, "AlreadyExists", f"{kind} {name} already exists")
            if kind == "Pod":
                body["status"] = {"phase": "Succeeded"}
            if kind == "Job":
                body["status"] = {"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}
        elif (kind, namespace, name) not in self.objects:
            return self.missing(f"{kind} {namespace}/{name}")
        key = (kind, namespace, name)
        if verb == "GET":
            return 200, self.objects[key]
        if verb == "DELETE":
            self.log.append(("deleted", kind, name))
            return 200, self.objects.pop(key)
        if verb == "PATCH":
            body = merged(self.objects[key], body)
        body.setdefault("apiVersion", base.split("/", 2)[2])
        body.setdefault("kind", kind)
        body["metadata"].update({"namespace": namespace, "uid": f"{kind}-{name}", "resourceVersion": "1"})
        if verb == "POST":
            self.log.append(("created", kind, name))
        self.objects[key] = body
        return 201 if verb == "POST" else 200, body

    @staticmethod
    def missing(what):
        return 404, status(404, "NotFound", f"{what} not found")


def status(code, reason, message):
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code}
