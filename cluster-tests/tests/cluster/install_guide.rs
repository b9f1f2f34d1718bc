//! Runs the first commands of docs/install.md as written.

use cluster_tests::netns::Network;
use cluster_tests::process::Process;
use cluster_tests::{node, repository, repository_file, wait};

/// The first block of commands of a section.
fn commands(section: &str) -> String {
    let guide = std::fs::read_to_string(repository_file("docs/install.md")).unwrap();
    let (_, text) = guide.split_once(&format!("\n## {section}\n")).expect("the guide has the section");
    let (_, block) = text.split_once("```sh\n").expect("the section has commands");
    block.split_once("```").expect("the block ends").0.to_owned()
}

#[test]
fn the_install_guide_leads_from_source_to_the_first_ban() {
    let Some((_network, hosts)) = Network::new(1) else { return };
    let folder = tempfile::tempdir().unwrap();
    let block = commands("From source");
    for word in ["cargo build --release --locked\n", "target/release/banmesh", "/tmp/banmesh"] {
        assert!(block.contains(word), "{word} in {block}");
    }
    // banmesh is already built, and other tests run on this machine.
    let block = block
        .replace("cargo build --release --locked\n", "")
        .replace("target/release/banmesh", &node::binary().to_string_lossy())
        .replace("/tmp/banmesh", &folder.path().to_string_lossy());
    let script = format!("set -e\n{block}\nkill %1\nwait %1");
    let mut bash = hosts[0].command("bash");
    bash.args(["-c", &script]).current_dir(repository());
    let mut process = Process::start("bash", bash, folder.path());
    let status = process.wait_for_exit(wait::SOON * 2);
    let said = process.log();
    assert!(status.success(), "{said}");
    assert!(said.contains("198.51.100.7 is banned"), "{said}");
}
