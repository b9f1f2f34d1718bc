/// Bytes that are not a valid frame, payload or value. A [`Session`](crate::Session) answers them with
/// [`Code::Invalid`](crate::Code::Invalid).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame: {0}")]
pub struct Malformed(pub &'static str);
