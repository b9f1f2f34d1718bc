//! HAProxy as an ingress controller runs it, from the chart's example.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::container::{Container, Mount};
use crate::haproxy::Binary;
use crate::kubernetes::Kubernetes;
use crate::{repository_file, wait};

/// The chart's values for an ingress controller.
pub const INGRESS: &str = "examples/values-ingress-controller.yaml";

/// HAProxy as in the example for the ingress controller: the rendered ConfigMap, with the snippet in its comment.
#[derive(Debug)]
pub struct HaProxy {
    // Dropped before the folder.
    /// Its container.
    pub container: Container,
    /// The address of its frontend, on its own host.
    pub http: SocketAddr,
    folder: tempfile::TempDir,
}

impl HaProxy {
    /// Starts it with a frontend at `http`.
    ///
    /// # Panics
    /// It does not start.
    pub fn start(binary: &Binary, cluster: &mut Kubernetes, http: SocketAddr) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let example =
            std::fs::read_to_string(repository_file("helm/banmesh").join(INGRESS)).expect("a file of HAProxy");
        let snippet: Vec<&str> = example.lines().filter_map(|line| line.strip_prefix("#     ")).collect();
        assert_eq!(snippet.len(), 3, "the snippet of the example: {snippet:?}");
        let text = format!(
            "global\n    log stdout format raw local0\n    stats socket /run/haproxy/admin.sock mode 666 level admin\n\
             defaults\n    mode http\n    log global\n    timeout connect 5s\n    timeout client 10s\n    timeout server 10s\n\
             frontend web\n    bind {http}\n    {}\n    http-request return status 200\n",
            snippet.join("\n    ")
        );
        let folder = tempfile::tempdir().expect("a file of HAProxy");
        let (config, run) = (folder.path().join("haproxy.cfg"), folder.path().join("run"));
        std::fs::write(&config, text).expect("a file of HAProxy");
        std::fs::create_dir(&run).expect("a file of HAProxy");
        std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o777)).expect("a file of HAProxy");
        let (program, mounted) = installed(binary);
        let mut mounts = vec![
            Mount::read_only(config, "/etc/haproxy.cfg"),
            Mount::read_only(cluster.config_map("t-banmesh-haproxy"), "/usr/local/etc/haproxy"),
            Mount { source: run, target: "/run/haproxy".to_owned(), writable: true },
        ];
        mounts.extend(mounted);
        let command = [&program, "-db", "-f", "/etc/haproxy.cfg", "-f", "/usr/local/etc/haproxy/haproxy-aux.cfg"];
        let container = cluster.run("haproxy", &command, mounts);
        let mut haproxy = Self { container, http, folder };
        wait::until("HAProxy runs", wait::SOON, || {
            haproxy.container.assert_running();
            haproxy.socket().exists()
        });
        haproxy
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("run/admin.sock")
    }

    /// How many agents it finds fit.
    pub fn agents(&self) -> usize {
        use std::io::{Read as _, Write as _};
        let ask = || -> std::io::Result<String> {
            let mut socket = std::os::unix::net::UnixStream::connect(self.socket())?;
            socket.write_all(b"show stat\n")?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = ask().unwrap_or_default();
        let lines = answer.lines().filter(|line| line.starts_with("spoe-ip-reputation,banmesh"));
        lines.filter(|line| line.split(',').nth(17).is_some_and(|status| status == "UP")).count()
    }
}

/// The path of HAProxy in a container, and the mount it needs.
///
/// # Panics
/// It is not installed.
pub fn installed(binary: &Binary) -> (String, Option<Mount>) {
    let path = binary.folder().join("haproxy").canonicalize().expect("HAProxy is installed");
    if path.starts_with("/usr") {
        (path.display().to_string(), None)
    } else {
        ("/opt/haproxy/haproxy".to_owned(), Some(Mount::read_only(path.parent().expect("its folder"), "/opt/haproxy")))
    }
}
