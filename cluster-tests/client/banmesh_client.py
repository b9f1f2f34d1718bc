#!/usr/bin/env python3
"""A second implementation of the cluster protocol, written from docs/protocol.md. Needs nothing but Python.

    banmesh_client.py join ADDRESS:PORT CLUSTER KEYFILE [--ban IP]

repairs with a node as one that has no entries. It prints the entries that it receives, one JSON object per line, and sends
one ban of its own with --ban.

    banmesh_client.py slot ADDRESS:PORT CLUSTER KEYFILE --ban IP

publishes one ban over TCP as a slot of a recent-changes log, waits until the node acknowledges it, and prints that.
"""

import argparse
import base64
import hashlib
import hmac
import ipaddress
import json
import os
import socket
import struct
import time

NODE = "python-client"
WIRE_VERSION = 2
NEVER = 0xFFFFFFFF


# Encryption: RFC 5869, RFC 8439 and draft-irtf-cfrg-xchacha-03.

def hkdf(key, label, name, length):
    secret = hmac.new(b"banmesh keyring", key, hashlib.sha256).digest()
    info, out, block = label + b"\0" + name, b"", b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.new(secret, block + info + bytes([number]), hashlib.sha256).digest()
        out += block
    return out[:length]


def rounds(state):
    s = list(state)

    def quarter(a, b, c, d):
        s[a] = (s[a] + s[b]) & NEVER
        x = s[d] ^ s[a]
        s[d] = (x << 16 | x >> 16) & NEVER
        s[c] = (s[c] + s[d]) & NEVER
        x = s[b] ^ s[c]
        s[b] = (x << 12 | x >> 20) & NEVER
        s[a] = (s[a] + s[b]) & NEVER
        x = s[d] ^ s[a]
        s[d] = (x << 8 | x >> 24) & NEVER
        s[c] = (s[c] + s[d]) & NEVER
        x = s[b] ^ s[c]
        s[b] = (x << 7 | x >> 25) & NEVER

    for _ in range(10):
        for a in range(4):
            quarter(a, a + 4, a + 8, a + 12)
        for a in range(4):
            quarter(a, 4 + (a + 1) % 4, 8 + (a + 2) % 4, 12 + (a + 3) % 4)
    return s


CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")


def hchacha(key, nonce):
    s = rounds(CONSTANTS + struct.unpack("<8I", key) + struct.unpack("<4I", nonce))
    return struct.pack("<8I", *s[:4], *s[12:])


def chacha(key, nonce, counter, data):
    out, words = bytearray(), struct.unpack("<8I", key)
    for at in range(0, len(data), 64):
        state = CONSTANTS + words + (counter,) + struct.unpack("<3I", nonce)
        block = struct.pack("<16I", *((a + b) & NEVER for a, b in zip(state, rounds(state))))
        out += bytes(a ^ b for a, b in zip(data[at:at + 64], block))
        counter += 1
    return bytes(out)


def poly1305(key, data):
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    s, total, prime = int.from_bytes(key[16:], "little"), 0, (1 << 130) - 5
    for at in range(0, len(data), 16):
        total = (total + int.from_bytes(data[at:at + 16] + b"\1", "little")) * r % prime
    return ((total + s) & ((1 << 128) - 1)).to_bytes(16, "little")


def tag(key, nonce, associated, text):
    pad = lambda data: data + b"\0" * (-len(data) % 16)
    lengths = struct.pack("<QQ", len(associated), len(text))
    return poly1305(chacha(key, nonce, 0, b"\0" * 32), pad(associated) + pad(text) + lengths)


class Seal:
    """Encrypted frames of one cluster."""

    LABELS = {1: b"banmesh gossip", 2: b"banmesh handshake", 3: b"banmesh repair", 4: b"banmesh datagram"}

    def __init__(self, key, cluster):
        self.name = cluster.encode()
        self.ids = hkdf(key, b"banmesh key id", b"", 4) + hkdf(key, b"banmesh cluster tag", self.name, 4)
        self.keys = {purpose: hkdf(key, label, self.name, 32) for purpose, label in self.LABELS.items()}

    def parts(self, purpose, context, nonce):
        header = bytes([1, purpose]) + self.ids
        associated = header + struct.pack("<Q", len(self.name)) + self.name + context
        return header, associated, hchacha(self.keys[purpose], nonce[:16]), b"\0" * 4 + nonce[16:]

    def seal(self, purpose, context, payload):
        nonce = os.urandom(24)
        header, associated, key, short = self.parts(purpose, context, nonce)
        text = chacha(key, short, 1, payload)
        return header + nonce + text + tag(key, short, associated, text)

    def open(self, purpose, context, frame):
        header, associated, key, short = self.parts(purpose, context, frame[10:34])
        text = frame[34:-16]
        if frame[:10] != header or not hmac.compare_digest(tag(key, short, associated, text), frame[-16:]):
            raise ValueError("the frame is not authentic")
        return chacha(key, short, 1, text)


class Connection:
    """A connection after the hellos."""

    def __init__(self, address, seal):
        self.seal = seal
        self.socket = socket.create_connection(address, timeout=20)
        ours = os.urandom(32)
        hello = ours + bytes([WIRE_VERSION, WIRE_VERSION, 0]) + NODE.encode()
        self.write(seal.seal(2, b"call", hello))
        answer = seal.open(2, b"answer" + ours, self.read(512))
        if answer[34] or answer[32] != WIRE_VERSION:
            raise ValueError("the node is busy, or reads another wire version")
        self.node, self.randoms, self.counts = answer[35:].decode(), ours + answer[:32], {1: 0, 2: 0}

    def write(self, frame):
        self.socket.sendall(struct.pack("<I", len(frame)) + frame)

    def exactly(self, length):
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise EOFError("the node has closed the connection")
            data += part
        return data

    def read(self, limit):
        (length,) = struct.unpack("<I", self.exactly(4))
        if length > limit:
            raise ValueError(f"a frame of {length} bytes")
        return self.exactly(length)

    def context(self, direction):
        number = self.counts[direction]
        self.counts[direction] += 1
        return bytes([direction]) + self.randoms + struct.pack("<Q", number)

    def send(self, kind, payload=b""):
        self.write(self.seal.seal(3, self.context(1), bytes([kind]) + payload))

    def receive(self):
        frame = self.seal.open(3, self.context(2), self.read(65_587))
        return frame[0], frame[1:]


# Batches of records.

def integer(number):
    if number < 251:
        return bytes([number])
    for mark, code, limit in ((251, "<H", 1 << 16), (252, "<I", 1 << 32), (253, "<Q", 1 << 64)):
        if number < limit:
            return bytes([mark]) + struct.pack(code, number)
    raise ValueError(number)


class Body:
    """The fields of a record."""

    def __init__(self, data):
        self.data = data

    def take(self, length):
        if len(self.data) < length:
            raise ValueError("the record is too short")
        taken, self.data = self.data[:length], self.data[length:]
        return taken

    def integer(self):
        first = self.take(1)[0]
        code = {251: "<H", 252: "<I", 253: "<Q"}.get(first)
        return first if code is None else struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def place(self):
        octets = self.take(16 if self.integer() else 4)
        return f"{ipaddress.ip_address(octets)}/{self.take(1)[0]}"

    def register(self, texts):
        clock, node = self.integer(), texts[self.integer()]
        state = ("banned", "allowed", "unbanned")[self.integer()]
        until = None if state == "unbanned" else self.integer()
        by, reason = texts[self.integer()], texts[self.integer()]
        return {"clock": clock, "node": node, "state": state, "until": until, "by": by, "reason": reason}


def long_text(data, at):
    (length,) = struct.unpack_from("<H", data, at)
    return data[at + 2:at + 2 + length], at + 2 + length


def read_batch(data):
    if data[0] != WIRE_VERSION:
        raise ValueError(f"wire version {data[0]}")
    (count,), at, texts = struct.unpack_from("<H", data, 1), 3, []
    for _ in range(count):
        text, at = long_text(data, at)
        texts.append(text.decode())
    while at < len(data):
        kind = data[at]
        content, at = long_text(data, at + 1)
        if kind not in (1, 3, 4):
            continue
        body = Body(content)
        entry = {"target": body.place(), "bans": body.integer(), "keep": body.integer()}
        names = {1: ["filter"], 3: ["operator"], 4: ["operator", "filter"]}[kind]
        for name in names:
            entry[name] = body.register(texts)
        if body.data:
            raise ValueError("the record has bytes left over")
        yield entry


def write_ban(address):
    """A batch with one permanent ban by an operator."""
    texts = [NODE, "python", "by the second implementation"]
    address = ipaddress.ip_address(address)
    clock = time.time_ns() // 1_000_000 << 16
    body = integer(0 if address.version == 4 else 1) + address.packed + bytes([address.max_prefixlen])
    body += integer(1) + integer(NEVER) + integer(clock) + integer(0) + integer(0) + integer(NEVER) + integer(1) + integer(2)
    counted = lambda data: struct.pack("<H", len(data)) + data
    return bytes([WIRE_VERSION]) + struct.pack("<H", 3) + b"".join(counted(t.encode()) for t in texts) + b"\3" + counted(body)


def join(connection, ban):
    connection.send(1, b"\0" * 8 * 4096)
    kind, differ = connection.receive()
    if kind != 2 or len(differ) != 512:
        raise ValueError(f"a frame of kind {kind} instead of the buckets that differ")
    if ban:
        connection.send(3, write_ban(ban))
    connection.send(4)
    while True:
        kind, payload = connection.receive()
        if kind == 4:
            break
        if kind != 3:
            raise ValueError(f"a frame of kind {kind} instead of records")
        for entry in read_batch(payload):
            print(json.dumps(entry))
    connection.send(5, struct.pack("<Q", 0))
    kind, changed = connection.receive()
    print(json.dumps({"node": connection.node, "changed_there": struct.unpack("<Q", changed)[0]}))


def slot(connection, ban):
    process = os.urandom(8)
    slot = struct.pack("<QH", 0, 1) + write_ban(ban)
    name = NODE.encode()
    connection.send(16, process + bytes([len(name)]) + name + struct.pack("<QQ", 0, 0) + b"b" + slot)
    kind, ack = connection.receive()
    node, rest = ack[1:1 + ack[0]].decode(), ack[1 + ack[0]:]
    author, (following, later, missed, at) = rest[:8], struct.unpack_from("<4Q", rest, 8)
    if kind != 17 or author != process:
        raise ValueError(f"a frame of kind {kind} instead of an acknowledgement")
    print(json.dumps({"node": node, "next": following, "later": later, "missed": missed, "at": at}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["join", "slot"])
    parser.add_argument("address")
    parser.add_argument("cluster")
    parser.add_argument("keyfile")
    parser.add_argument("--ban", metavar="IP")
    arguments = parser.parse_args()
    with open(arguments.keyfile, encoding="ascii") as file:
        key = base64.b64decode(file.readline())
    host, port = arguments.address.rsplit(":", 1)
    connection = Connection((host.strip("[]"), int(port)), Seal(key, arguments.cluster))
    {"join": join, "slot": slot}[arguments.what](connection, arguments.ban)


if __name__ == "__main__":
    main()
