/// The bytes are not what the protocol prescribes, for this reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid message of the peers protocol: {0}")]
pub struct Malformed(pub &'static str);
