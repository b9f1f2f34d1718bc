"""What the NetworkPolicies let through, by the rules of Kubernetes: every port of a pod, asked by everybody there is."""

import ipaddress

from rendering import API, ASKED, TLS, check, merged, objects_of, of_kind, template

NAMESPACE = "edge"
# Who is there: a pod by namespace and labels, or an address.
MEMBER = {"app.kubernetes.io/name": "banmesh", "app.kubernetes.io/instance": "t", "app.kubernetes.io/component": "node"}
PARTIES = {
    "a member": (NAMESPACE, MEMBER),
    "another release's member": (NAMESPACE, MEMBER | {"app.kubernetes.io/instance": "u"}),
    "a member's namesake elsewhere": ("other", MEMBER),
    "HAProxy": (NAMESPACE, {"app": "haproxy"}),
    "HAProxy's namesake elsewhere": ("other", {"app": "haproxy"}),
    "a pod beside": (NAMESPACE, {"app": "web"}),
    "the test": (NAMESPACE, MEMBER | {"app.kubernetes.io/component": "test"}),
    "an operator": ("ops", {"app": "console"}),
    "Prometheus": ("monitoring", {"app": "prometheus"}),
    "a mail server": "192.0.2.9",
    "a mail server that is left out": "192.0.2.77",
    "a member outside": "203.0.113.5",
    "a stranger": "198.51.100.1",
}
VALUES = merged(API, ASKED, TLS, {"cluster": {"extraSeeds": ["203.0.113.5:12350"]}, "networkPolicy": {
    "enabled": True,
    "spopFrom": [{"podSelector": {"matchLabels": {"app": "haproxy"}}}],
    "syslogFrom": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.77/32"]}}],
    "apiFrom": [{"namespaceSelector": {"matchLabels": {"name": "ops"}}, "podSelector": {"matchLabels": {"app": "console"}}}],
    "listenersFrom": [{"podSelector": {"matchLabels": {"app": "web"}}}],
    "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
    "clusterFrom": [{"ipBlock": {"cidr": "203.0.113.0/24"}}],
    "extraEgress": [{"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}],
}})
SYSLOG = {"syslog-udp", "syslog-tcp", "syslog-tls"}
LISTENERS = {"verdict", "crowdsec", "lists", "dnsbl-udp", "dnsbl-tcp", "policy", "auth-policy"}
GOSSIP = {"gossip-udp", "gossip-tcp"}
LET_IN = {
    "a member": GOSSIP,
    "a member outside": GOSSIP,
    "HAProxy": {"spop"},
    "a mail server": SYSLOG,
    "a pod beside": LISTENERS,
    "an operator": {"api"},
    "Prometheus": {"metrics"},
}
# To whom members may send, and where.
LET_OUT = {("a member", 12350, "UDP"), ("a member", 12350, "TCP")} | {(party, 53, protocol) for party in PARTIES for protocol in ("UDP", "TCP")}


def selects(selector, labels):
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    assert not selector.get("matchExpressions"), "not used here"
    return True


def is_peer(peer, party):
    """Whether a peer of a policy in NAMESPACE means a party."""
    if "ipBlock" in peer:
        if not isinstance(party, str):
            return False
        address = ipaddress.ip_address(party)
        block = peer["ipBlock"]
        left_out = any(address in ipaddress.ip_network(each) for each in block.get("except", ()))
        return address in ipaddress.ip_network(block["cidr"]) and not left_out
    if isinstance(party, str):
        return False
    namespace, labels = party
    spaces = peer.get("namespaceSelector")
    right_namespace = namespace == NAMESPACE if spaces is None else selects(spaces, {"name": namespace})
    return right_namespace and selects(peer.get("podSelector", {}), labels)


def allows(rules, side, party, port, protocol):
    """Whether one of the rules lets through. No list of peers or of ports means all."""
    for rule in rules:
        right_peer = not rule.get(side) or any(is_peer(peer, party) for peer in rule[side])
        right_port = not rule.get("ports") or any(
            each.get("protocol", "TCP") == protocol and each.get("port") in (None, port) for each in rule["ports"])
        if right_peer and right_port:
            return True
    return False


def policies():
    done = template(values=VALUES)
    check(done.returncode == 0, done.stderr)
    objects = objects_of(done.stdout)
    found = of_kind(objects, "NetworkPolicy")
    is_of_test = {p["metadata"]["name"]: "helm.sh/hook" in p["metadata"].get("annotations", {}) for p in found}
    check(sorted(is_of_test.values()) == [False, True], f"one policy that stays and one while the test runs: {is_of_test}")
    stays, during_test = sorted(found, key=lambda p: is_of_test[p["metadata"]["name"]])
    labels = of_kind(objects, "StatefulSet")[0]["spec"]["template"]["metadata"]["labels"]
    for policy in found:
        check(policy["spec"]["podSelector"] and selects(policy["spec"]["podSelector"], labels), "a policy is about the members")
    check(set(stays["spec"]["policyTypes"]) == {"Ingress", "Egress"}, "both directions")
    check(during_test["spec"]["policyTypes"] == ["Ingress"] and "egress" not in during_test["spec"], "the test's is about one")
    check(selects(MEMBER, labels) and len(labels) == len(MEMBER), "the members' labels")

    ports = of_kind(objects, "StatefulSet")[0]["spec"]["template"]["spec"]["containers"][0]["ports"]
    check({p["name"] for p in ports} == SYSLOG | GOSSIP | LISTENERS | {"spop", "api", "metrics"}, f"every port is known here: {ports}")
    asked = 0
    for testing in (False, True):
        rules = stays["spec"]["ingress"] + (during_test["spec"]["ingress"] if testing else [])
        for party, what in PARTIES.items():
            wanted = LET_IN.get(party, set())
            if testing and party == "the test":
                wanted = {"spop", "syslog-tcp", "syslog-tls", "metrics"} | LISTENERS - {"dnsbl-udp"}
            for port in ports:
                let_in = allows(rules, "from", what, port["name"], port.get("protocol", "TCP"))
                check(let_in == (port["name"] in wanted), f"policy: {party} and {port['name']}: {let_in}, test running: {testing}")
                asked += 1
    for party, what in PARTIES.items():
        for port in (12350, 53, 443, 12345):
            for protocol in ("UDP", "TCP"):
                let_out = allows(stays["spec"]["egress"], "to", what, port, protocol)
                # extraEgress.
                wanted = (party, port, protocol) in LET_OUT or party == "a member outside"
                check(let_out == wanted, f"policy: out to {party}, {protocol} {port}: {let_out}")
                asked += 1

    # Without words about the metrics they are for the cluster, and the API is for nobody.
    fewer = merged(VALUES, {"networkPolicy": {"metricsFrom": [], "apiFrom": []}})
    rules = [p for p in of_kind(objects_of(template(values=fewer).stdout), "NetworkPolicy") if not is_of_test[p["metadata"]["name"]]]
    for party, what in PARTIES.items():
        is_pod = not isinstance(what, str)
        check(allows(rules[0]["spec"]["ingress"], "from", what, "metrics", "TCP") == is_pod, f"policy: metrics for {party}")
        check(not allows(rules[0]["spec"]["ingress"], "from", what, "api", "TCP"), f"policy: the API for {party}")
    return f"{asked} connections judged by the policies"
