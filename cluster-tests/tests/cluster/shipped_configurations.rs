//! Every HAProxy configuration that the repository ships is accepted by every version, without a warning.

use std::path::Path;
use std::process::Command;

use cluster_tests::haproxy::{Binary, Config};
use cluster_tests::{repository_file, with_every_haproxy};

with_every_haproxy!(every_shipped_configuration_is_accepted);

fn every_shipped_configuration_is_accepted(haproxy: &Binary) {
    for name in shipped() {
        let config = Config::shipped(&name);
        certificate(&config.folder().join("certs"), "site.pem");
        certificate(&config.folder().join("banmesh"), "ca.pem");
        certificate(&config.folder().join("banmesh"), "client.pem");
        let output = haproxy.check(&config);
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let remarks: Vec<&str> = said.lines().filter(|line| !line.contains("Configuration file is valid")).collect();
        assert!(output.status.success(), "HAProxy {} refuses {name}:\n{said}", haproxy.series());
        assert!(remarks.is_empty(), "HAProxy {} on {name} says:\n{said}", haproxy.series());
    }
}

/// The block that names the agents is the same in every file, so that a reader knows it after the first.
#[test]
fn the_agents_have_the_same_names_in_every_file() {
    let base = agents_of("haproxy.cfg");
    for name in shipped() {
        if !["recipes/spop-tls.cfg", "recipes/mirror.cfg", "recipes/global-rate-limit.cfg"].contains(&name.as_str()) {
            assert_eq!(agents_of(&name), base, "{name}");
        }
    }
}

fn agents_of(name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(repository_file("deploy/haproxy").join(name)).expect("read it");
    let block =
        text.lines().skip_while(|line| *line != "backend spoe-ip-reputation").take_while(|line| !line.is_empty());
    block.map(str::to_owned).collect()
}

fn shipped() -> Vec<String> {
    let mut names = vec!["haproxy.cfg".to_owned()];
    for entry in std::fs::read_dir(repository_file("deploy/haproxy/recipes")).expect("list the recipes").flatten() {
        names.push(format!("recipes/{}", entry.file_name().to_string_lossy()));
    }
    names.sort();
    assert!(names.len() > 5, "{names:?}");
    names
}

fn certificate(folder: &Path, name: &str) {
    std::fs::create_dir_all(folder).expect("create the folder");
    let (key, chain) = (folder.join("k"), folder.join("c"));
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=example.test", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&chain)
        .output()
        .expect("run openssl");
    assert!(output.status.success(), "{output:?}");
    let pem = [std::fs::read(&chain).expect("read"), std::fs::read(&key).expect("read")].concat();
    std::fs::write(folder.join(name), pem).expect("write");
    std::fs::remove_file(key).expect("remove");
    std::fs::remove_file(chain).expect("remove");
}
