//! A SPOP client for tests, written from HAProxy's doc/SPOE.txt, so that it shares no mistake with the agent.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::wait;

const HELLO: u8 = 1;
const NOTIFY: u8 = 3;
const AGENT_HELLO: u8 = 101;
const ACK: u8 = 103;

/// A connection after the handshake.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    next_stream: u64,
}

impl Connection {
    /// Connects to an agent and does HAProxy's handshake. Waits up to [`wait::SOON`] for each answer.
    ///
    /// # Errors
    /// Nobody listens at `agent`, it does not answer in time, or it answers with another frame than AGENT-HELLO.
    pub fn open(agent: SocketAddr) -> io::Result<Self> {
        Self::open_within(agent, wait::SOON)
    }

    /// As [`Connection::open`], but waits up to `patience` for each answer.
    ///
    /// # Errors
    /// Nobody listens at `agent`, it does not answer in time, or it answers with another frame than AGENT-HELLO.
    pub fn open_within(agent: SocketAddr, patience: Duration) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&agent, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        stream.write_all(&hello())?;
        let (kind, _) = read_frame(&mut stream)?;
        if kind != AGENT_HELLO {
            return Err(io::Error::other(format!("expected AGENT-HELLO, got frame type {kind}")));
        }
        Ok(Self { stream, next_stream: 1 })
    }

    /// Queries whether `address` is banned, like the shipped configuration (message check-ip, argument src_ip).
    ///
    /// # Errors
    /// The connection breaks, the agent does not answer in time, or its answer does not set `banned` in the scopes
    /// `sess` and `txn` to the same 0 or 1.
    pub fn is_banned(&mut self, address: IpAddr) -> io::Result<bool> {
        let stream_id = self.next_stream;
        self.next_stream += 1;
        self.stream.write_all(&notify(stream_id, address))?;
        let (kind, body) = read_frame(&mut self.stream)?;
        if kind != ACK {
            return Err(io::Error::other(format!("expected ACK, got frame type {kind}")));
        }
        let mut body = body.as_slice();
        let answered = take_varint(&mut body)?;
        let _frame_id = take_varint(&mut body)?;
        if answered != stream_id {
            return Err(io::Error::other(format!("asked as stream {stream_id}, answered as {answered}")));
        }
        let (mut session, mut transaction) = (None, None);
        while !body.is_empty() {
            let (action, _arguments) = (take_byte(&mut body)?, take_byte(&mut body)?);
            let scope = take_byte(&mut body)?;
            let name = take_string(&mut body)?;
            if action != 1 {
                continue;
            }
            let value = take_integer(&mut body)?;
            match (scope, name.as_slice()) {
                (1, b"banned") => session = Some(value),
                (2, b"banned") => transaction = Some(value),
                _ => {}
            }
        }
        match (session, transaction) {
            (Some(0), Some(0)) => Ok(false),
            (Some(1), Some(1)) => Ok(true),
            other => Err(io::Error::other(format!("banned in (sess, txn) is {other:?}"))),
        }
    }
}

/// HAProxy's first frame.
pub(crate) fn hello() -> Vec<u8> {
    let mut hello = Vec::new();
    put_string(&mut hello, "supported-versions");
    put_typed_string(&mut hello, "2.0");
    put_string(&mut hello, "max-frame-size");
    hello.push(3);
    put_varint(&mut hello, 16_380);
    put_string(&mut hello, "capabilities");
    put_typed_string(&mut hello, "pipelining");
    frame(HELLO, 0, 0, &hello)
}

/// A query whether `address` is banned, always of the same stream.
pub(crate) fn query(address: IpAddr) -> Vec<u8> {
    notify(1, address)
}

fn notify(stream_id: u64, address: IpAddr) -> Vec<u8> {
    let mut notify = Vec::new();
    put_string(&mut notify, "check-ip");
    notify.push(1);
    put_string(&mut notify, "src_ip");
    match address {
        IpAddr::V4(v4) => {
            notify.push(6);
            notify.extend_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            notify.push(7);
            notify.extend_from_slice(&v6.octets());
        }
    }
    frame(NOTIFY, stream_id, 1, &notify)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    let low = |value: u64| u8::try_from(value & 0xff).unwrap_or_default();
    if value < 240 {
        out.push(low(value));
        return;
    }
    out.push(low(value) | 240);
    value = (value - 240) >> 4;
    while value >= 128 {
        out.push(low(value) | 128);
        value = (value - 128) >> 7;
    }
    out.push(low(value));
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn put_typed_string(out: &mut Vec<u8>, text: &str) {
    out.push(8);
    put_string(out, text);
}

fn frame(kind: u8, stream_id: u64, frame_id: u64, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0, 1];
    put_varint(&mut body, stream_id);
    put_varint(&mut body, frame_id);
    body.extend_from_slice(payload);
    let mut out = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    out.extend_from_slice(&body);
    out
}

/// A frame: its type, and the bytes after the flags.
fn read_frame(stream: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if !(7..=16_380).contains(&length) {
        return Err(io::Error::other(format!("a frame of {length} bytes")));
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body)?;
    let rest = body.split_off(5);
    Ok((body.first().copied().unwrap_or_default(), rest))
}

fn take_byte(body: &mut &[u8]) -> io::Result<u8> {
    let (first, rest) = body.split_first().ok_or_else(|| io::Error::other("the frame ends too early"))?;
    *body = rest;
    Ok(*first)
}

fn take_varint(body: &mut &[u8]) -> io::Result<u64> {
    let first = u64::from(take_byte(body)?);
    if first < 240 {
        return Ok(first);
    }
    let (mut value, mut shift) = (first, 4);
    loop {
        let next = u64::from(take_byte(body)?);
        value += next << shift;
        shift += 7;
        if next < 128 {
            return Ok(value);
        }
        if shift > 56 {
            return Err(io::Error::other("a varint without an end"));
        }
    }
}

fn take_string(body: &mut &[u8]) -> io::Result<Vec<u8>> {
    let length = usize::try_from(take_varint(body)?).map_err(io::Error::other)?;
    let (text, rest) = body.split_at_checked(length).ok_or_else(|| io::Error::other("the frame ends in a string"))?;
    *body = rest;
    Ok(text.to_vec())
}

fn take_integer(body: &mut &[u8]) -> io::Result<u64> {
    match take_byte(body)? & 0x0f {
        2..=5 => take_varint(body),
        other => Err(io::Error::other(format!("the value has type {other} and is no integer"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_come_back() {
        for value in [0, 1, 239, 240, 2287, 2288, 16_380, 264_431, u64::from(u32::MAX)] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(take_varint(&mut bytes.as_slice()).unwrap(), value);
        }
    }

    #[test]
    fn the_specification_s_limits_take_one_two_and_three_bytes() {
        for (value, length) in [(239, 1), (240, 2), (2287, 2), (2288, 3), (264_431, 3), (264_432, 4)] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(bytes.len(), length, "{value}");
        }
    }
}
