//! `make demo` works with every HAProxy, and cleans up.

use std::process::Command;

use cluster_tests::haproxy::Binary;
use cluster_tests::netns::Network;
use cluster_tests::{node, repository_file, with_every_haproxy};

with_every_haproxy!(the_demo_completes_and_cleans_up);

fn the_demo_completes_and_cleans_up(haproxy: &Binary) {
    let temporary = tempfile::tempdir().unwrap();
    let path = format!("{}:{}", haproxy.folder().display(), std::env::var("PATH").unwrap());
    // On a host of its own where that is possible, so that nobody takes a port between its choice and its use.
    let network = Network::new(1);
    let demo = repository_file("demo/run");
    let mut command = match &network {
        Some((_, hosts)) => hosts[0].command(demo.to_str().unwrap()),
        None => Command::new(demo),
    };
    // The step with SSH is the same with every HAProxy.
    let ssh = if haproxy.series() == "3.4" { "" } else { "no" };
    command.env("PATH", path).env("BANMESH_BIN", node::binary()).env("TMPDIR", temporary.path()).env("SSH", ssh);
    let output = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&format!("HAProxy version {}", haproxy.series())), "{said}");
    if network.is_some() && haproxy.series() == "3.4" {
        assert!(said.contains("host 2 drops the packets of"), "{said}");
    }
    assert!(said.contains("Everything works as expected."), "{said}");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "it leaves nothing behind");
    let folder = temporary.path().to_str().unwrap();
    let running = std::fs::read_dir("/proc").unwrap().filter_map(|process| {
        let command = std::fs::read_to_string(process.ok()?.path().join("cmdline")).ok()?;
        command.contains(folder).then_some(command)
    });
    assert_eq!(running.collect::<Vec<_>>(), Vec::<String>::new(), "it leaves no process behind");
}
