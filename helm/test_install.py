"""Helm itself against a stand-in for the API server: the cluster's key is made once and outlives everything, wrong values change
nothing, and `helm test` is let in by a policy that goes with it."""

import base64

import yaml

from api_server import ApiServer
from rendering import BIN, CHART, GENERATE, POLICY, TLS, WORK, check, merged, run, values_file

SECRET = "t-banmesh-cluster"


class Cluster(ApiServer):
    def __init__(self):
        super().__init__()
        self.file = WORK / "kubeconfig"
        self.file.write_text(yaml.safe_dump(self.kubeconfig()))

    def helm(self, *words, values=None, fails=False):
        """Helm's words; it must succeed, or fail."""
        more = ["-f", values_file(values)] if values is not None else []
        done = run(BIN / "helm", *words, *more, "--namespace", "edge", "--kubeconfig", self.file)
        check((done.returncode != 0) == fails, f"helm {' '.join(map(str, words))}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def upgrade(self, values, fails=False):
        return self.helm("upgrade", "t", CHART, *GENERATE, values=values, fails=fails)

    def install(self, name="t", values=None, fails=False):
        return self.helm("install", name, CHART, *GENERATE, "--create-namespace", values=values, fails=fails)

    def key(self, name=SECRET, key="cluster.key"):
        return base64.b64decode(self.get("Secret", name)["data"][key]).decode()


def installs_and_keeps_the_key():
    cluster = Cluster()
    try:
        said = cluster.helm("install", "t", CHART, "--create-namespace", fails=True)
        check("choose where the cluster's key comes from" in said and not cluster.names(), f"no key was chosen: {said}")
        notes = cluster.install()
        for text in ("as 3 node(s)", "t-banmesh-spop.edge.svc.cluster.local:12345", "t-banmesh-syslog-tcp.edge.svc.cluster.local:514", "Log lines by UDP go to t-banmesh-syslog-udp",
                     "set service.syslog.type to LoadBalancer",
                     "Any host that reaches the syslog port can ban", "exec t-banmesh-0 -c banmesh", f"the Secret {SECRET}"):
            check(text in notes, f"NOTES: {text!r} is not in {notes}")
        first = cluster.key()
        check(len(base64.b64decode(first)) == 32, "a key of 32 bytes is made")
        order = [name for verb, _, name in cluster.log if verb == "created"]
        check(order.index(SECRET) < order.index("t-banmesh"), "the key is there before the pods")

        cluster.upgrade({"replicaCount": 5})
        check(cluster.get("StatefulSet", "t-banmesh")["spec"]["replicas"] == 5, "the upgrade came through")
        check(cluster.key() == first, "an upgrade keeps the key")

        # Rotated by hand; neither an upgrade nor a rollback brings the old one back.
        ring = base64.b64encode((first + base64.b64encode(b"7" * 32).decode() + "\n").encode()).decode()
        cluster.get("Secret", SECRET)["data"]["cluster.key"] = ring
        rotated = cluster.key()
        cluster.upgrade({"replicaCount": 4})
        check(cluster.key() == rotated, "an upgrade keeps a key that was changed by hand")
        cluster.helm("rollback", "t", "1")
        check(cluster.get("StatefulSet", "t-banmesh")["spec"]["replicas"] == 3, "the rollback came through")
        check(cluster.key() == rotated, "a rollback keeps a key that was changed by hand")

        # What is wrong changes nothing.
        before = repr(sorted(cluster.objects.items()))
        said = cluster.upgrade({"replicas": 3}, fails=True)
        check("Additional property replicas is not allowed" in said, said)
        # What Kubernetes would refuse after the ConfigMap has changed.
        for values, text in [
            ({"service": {"spop": {"clusterIP": "None"}}}, "kubectl -n edge delete service t-banmesh-spop"),
            ({"persistence": {"enabled": False}}, "persistence.enabled cannot change on a StatefulSet"),
            ({"persistence": {"size": "5Gi"}}, "persistence.size cannot change from 1Gi to 5Gi on a StatefulSet"),
            ({"persistence": {"storageClass": "fast"}}, "delete statefulset t-banmesh --cascade=orphan"),
            ({"fullnameOverride": "t-banmesh", "nameOverride": "other"}, "the labels of the pods cannot change"),
        ]:
            said = cluster.upgrade(values, fails=True)
            check(text in said, f"{values}: {said}")
        said = cluster.upgrade({"cluster": {"keyring": {"secretKey": "other"}}}, fails=True)
        check(f"the Secret {SECRET} has no key `other`, only `cluster.key`" in said, said)
        said = cluster.upgrade({"metrics": {"serviceMonitor": {"enabled": True}}}, fails=True)
        check('no matches for kind "ServiceMonitor"' in said, said)
        kept = {key: value for key, value in cluster.objects.items() if not key[2].startswith("sh.helm.")}
        check(before.count("sh.helm.") and all(repr(each) in before for each in kept.items()), "a refused upgrade changes nothing")

        # Of one's own, and back.
        said = cluster.upgrade(merged(TLS, {"cluster": {"keyring": {"existingSecret": "mine"}}}))
        for name in ("mine", "syslog-tls"):
            check(f"The Secret {name} does not exist yet" in said, f"NOTES: {said}")
        check(SECRET not in said, f"NOTES name a Secret that is not used: {said}")
        cluster.upgrade({})
        check(cluster.key() == rotated, "the key is there again after one of one's own")

        # Another release in the namespace has another key.
        cluster.install("u")
        check(cluster.key("u-banmesh-cluster") != first, "each release has a key of its own")
        cluster.helm("uninstall", "u")

        # Without volumes, pods with another port could not get the bans of the others.
        cluster.install("v", {"persistence": {"enabled": False}})
        said = cluster.helm("upgrade", "v", CHART, *GENERATE, values={"persistence": {"enabled": False}, "cluster": {"port": 20004}}, fails=True)
        check("changing cluster.port from 12350 to 20004 would lose every ban" in said, said)
        cluster.helm("upgrade", "v", CHART, *GENERATE, values={"persistence": {"enabled": False}, "replicaCount": 2})
        cluster.upgrade({"cluster": {"port": 20004}})
        cluster.upgrade({})
        cluster.helm("uninstall", "v")

        # `helm test` where a policy is in force.
        said = cluster.upgrade(merged(POLICY, {"cluster": {"extraSeeds": ["a.example:12350"]}}))
        check("cluster.extraSeeds" in said, f"NOTES tell that the policy keeps members outside away: {said}")
        at = len(cluster.log)
        cluster.helm("test", "t")
        check(cluster.log[at:] == [("created", "NetworkPolicy", "t-banmesh-test"), ("created", "Job", "t-banmesh-test"),
                                   ("deleted", "Job", "t-banmesh-test"), ("deleted", "NetworkPolicy", "t-banmesh-test")],
              f"the test is let in while it runs: {cluster.log[at:]}")

        # Gone, but for the keys; and back with the same one.
        cluster.helm("uninstall", "t")
        check(cluster.names() == {("Secret", f"{name}-banmesh-cluster") for name in "tuv"}, f"left behind: {cluster.names()}")
        cluster.install()
        check(cluster.key() == rotated, "installed again, with the key that is there")
    finally:
        cluster.close()
    return "installed, upgraded, rolled back, tested and removed by Helm with one key"
