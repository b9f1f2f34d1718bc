// Addresses and networks as 128-bit numbers. As on the node, IPv4 is mapped into IPv6 (RFC 4291 §2.5.5.2).

const MAPPED = 0xffffn << 32n;

function ipv4(text) {
  const parts = text.split(".");
  if (parts.length !== 4 || !parts.every((part) => /^(0|[1-9]\d{0,2})$/.test(part) && Number(part) < 256)) return null;
  return parts.reduce((bits, part) => (bits << 8n) | BigInt(part), 0n);
}

function ipv6(text) {
  let rest = text;
  const dotted = rest.match(/^(.*:)(\d+\.\d+\.\d+\.\d+)$/);
  if (dotted) {
    const low = ipv4(dotted[2]);
    if (low === null) return null;
    rest = `${dotted[1]}${(low >> 16n).toString(16)}:${(low & 0xffffn).toString(16)}`;
  }
  const halves = rest.split("::");
  if (halves.length > 2) return null;
  const [head, tail] = halves.map((half) => (half === "" ? [] : half.split(":")));
  const missing = 8 - head.length - (tail?.length ?? 0);
  if (tail === undefined ? missing !== 0 : missing < 1) return null;
  const groups = tail === undefined ? head : [...head, ...Array(missing).fill("0"), ...tail];
  if (!groups.every((group) => /^[0-9a-f]{1,4}$/i.test(group))) return null;
  return groups.reduce((bits, group) => (bits << 16n) | BigInt(`0x${group}`), 0n);
}

/** Parses an address or network into `{bits, prefix, host}`; null if invalid. As on the node, the host bits of a network must be zero. */
export function parse(text) {
  const found = network(text);
  return found?.exact ? found : null;
}

/** The network of `text` if its only fault is host bits, as `1.2.3.4/8` for 1.0.0.0/8; an empty text otherwise. */
export function meantNetwork(text) {
  const found = network(text);
  if (!found || found.exact) return "";
  if (found.bits >> 32n === 0xffffn && found.prefix >= 96) {
    const octets = [24n, 16n, 8n, 0n].map((shift) => (found.bits >> shift) & 255n);
    return `${octets.join(".")}/${found.prefix - 96}`;
  }
  const groups = Array.from({ length: 8 }, (_, index) => ((found.bits >> BigInt(112 - 16 * index)) & 0xffffn).toString(16));
  return `${groups.join(":").replace(/(:0)+$/, "::")}/${found.prefix}`;
}

/** Like `parse`, with any host bits; `exact` if there are none. */
function network(text) {
  const [address, length, more] = text.trim().split("/");
  if (more !== undefined || address === "") return null;
  const four = ipv4(address);
  const bits = four === null ? ipv6(address) : MAPPED | four;
  if (bits === null) return null;
  const widest = four === null ? 128 : 32;
  if (length !== undefined && (!/^\d{1,3}$/.test(length) || Number(length) > widest)) return null;
  const prefix = length === undefined ? 128 : 128 - widest + Number(length);
  const host = BigInt(128 - prefix);
  const first = (bits >> host) << host;
  return { bits: first, prefix, host: prefix === 128, exact: first === bits };
}

/** Whether `wide` contains all of `narrow`. */
export function covers(wide, narrow) {
  const host = BigInt(128 - wide.prefix);
  return wide.prefix <= narrow.prefix && wide.bits >> host === narrow.bits >> host;
}

/** A predicate for a search text. Matches what the parameter `search` of `/api/v1/bans` matches. */
export function search(text) {
  const wanted = text.trim();
  if (wanted === "") return () => true;
  const near = parse(wanted);
  if (near) {
    return (entry) => {
      const target = parse(entry.target);
      return target !== null && (covers(target, near) || covers(near, target));
    };
  }
  const lower = wanted.toLowerCase();
  return (entry) => [entry.target, entry.by, entry.reason, entry.node].some((part) => part.toLowerCase().includes(lower));
}
