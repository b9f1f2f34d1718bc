//! The syntax of scalar values whose types are not of the configuration alone: numbers, texts, paths, durations and addresses.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::setting::{Scalar, Takes};
use banmesh_types::target::Target;
use banmesh_types::time::Span;

impl Scalar for bool {
    const KIND: &'static str = "true or false";
    const TAKES: Takes = Takes::Bool;

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(format!("`{text}` is neither true nor false")),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn to_json(&self) -> serde_json::Value {
        (*self).into()
    }
}

/// Implements [`Scalar`] for unsigned integers.
macro_rules! whole {
    ($($kind:ty: $words:literal),*) => { $(
        impl Scalar for $kind {
            const KIND: &'static str = $words;
            const TAKES: Takes = Takes::Number;

            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| format!("`{text}` is not {} (0 to {})", $words, Self::MAX))
            }

            fn show(&self) -> String {
                self.to_string()
            }

            fn to_json(&self) -> serde_json::Value {
                (*self).into()
            }
        }
    )* };
}
whole!(u8: "a whole number", u16: "a port", u32: "a whole number", usize: "a whole number");

impl Scalar for f64 {
    const KIND: &'static str = "a number";
    const TAKES: Takes = Takes::Number;

    fn parse(text: &str) -> Result<Self, String> {
        let number: Option<Self> = text.parse().ok();
        number.filter(|number| number.is_finite()).ok_or_else(|| format!("`{text}` is not a number"))
    }

    fn show(&self) -> String {
        format!("{self:?}")
    }

    fn to_json(&self) -> serde_json::Value {
        (*self).into()
    }
}

impl Scalar for String {
    const KIND: &'static str = "text";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl Scalar for PathBuf {
    const KIND: &'static str = "a path";
    const KINDS: &'static str = "list of paths";

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains('\0') {
            return Err(format!("{text:?} is not a path"));
        }
        Ok(Self::from(text))
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Scalar for Span {
    const KIND: &'static str = "a duration such as 30s, 5m or 24h";
    const TAKES: Takes = Takes::Both;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: banmesh_types::time::SpanError| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Scalar for Target {
    const KIND: &'static str = "an address or network";
    const KINDS: &'static str = "list of addresses and networks";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: banmesh_types::target::TargetError| error.to_string())
    }

    fn show(&self) -> String {
        // With the prefix even for a single address, as configurations of WebFail2Ban have it.
        format!("{}/{}", self.address(), self.prefix())
    }
}

impl Scalar for IpAddr {
    const KIND: &'static str = "an IP address";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("`{text}` is not an IP address, such as 0.0.0.0, 127.0.0.1 or ::"))
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Scalar for SocketAddr {
    const KIND: &'static str = "address:port";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| {
            let fix = match text.strip_prefix(':').or_else(|| text.strip_prefix("*:")) {
                Some(port) => format!("; for every address write 0.0.0.0:{port} or [::]:{port}"),
                None => ", such as 127.0.0.1:514 or [::1]:514".to_owned(),
            };
            format!("`{text}` is not an IP address and a port{fix}")
        })
    }

    fn show(&self) -> String {
        self.to_string()
    }
}
