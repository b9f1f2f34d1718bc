//! The options of every command that talks to a running node.

use std::path::PathBuf;

use crate::config::Config;

/// Which node to talk to, and how to print its response.
#[derive(Clone, Debug, Default, clap::Args)]
#[allow(rustdoc::bare_urls, reason = "the comments are also the help in a terminal")]
pub struct NodeArgs {
    /// The node's admin socket [default: $BANMESH_SOCKET, else the one in the configuration]
    #[arg(long, value_name = "PATH", conflicts_with = "url")]
    pub socket: Option<PathBuf>,
    /// The node's API, such as https://node1.example.org:8888 [default: $BANMESH_URL, else the socket]
    #[arg(long, value_name = "URL", help_heading = "Node on another host")]
    pub url: Option<String>,
    /// File whose first line is the API token [default: $BANMESH_TOKEN is the token]
    #[arg(long, value_name = "FILE", help_heading = "Node on another host", conflicts_with = "user")]
    pub token_file: Option<PathBuf>,
    /// Log in as this user; the password is $BANMESH_PASSWORD, or you are asked for it
    #[arg(long, value_name = "NAME", help_heading = "Node on another host")]
    pub user: Option<String>,
    /// PEM file with the CA certificates to trust [default: those of the system]
    #[arg(long, value_name = "FILE", help_heading = "Node on another host")]
    pub ca: Option<PathBuf>,
    /// PEM file with the client certificate, for a node with api.tls.client_ca; also its key, unless --key is given
    #[arg(long, value_name = "FILE", help_heading = "Node on another host")]
    pub cert: Option<PathBuf>,
    /// PEM file with the private key of --cert
    #[arg(long, value_name = "FILE", help_heading = "Node on another host", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print times in UTC instead of local time
    #[arg(long)]
    pub utc: bool,
}

impl NodeArgs {
    /// The admin socket: `--socket` (filled in from the configuration if not given), else `BANMESH_SOCKET`, else the default path.
    pub fn socket(&self) -> PathBuf {
        let from_environment =
            || std::env::var_os("BANMESH_SOCKET").filter(|value| !value.is_empty()).map(PathBuf::from);
        self.socket.clone().or_else(from_environment).unwrap_or_else(|| Config::default().admin_socket())
    }

    /// The API to use instead of the socket: `--url`, else `BANMESH_URL` unless a socket is given.
    pub fn url(&self) -> Option<String> {
        let from_environment = || std::env::var("BANMESH_URL").ok().filter(|value| !value.is_empty());
        self.url.clone().or_else(|| if self.socket.is_none() { from_environment() } else { None })
    }
}
