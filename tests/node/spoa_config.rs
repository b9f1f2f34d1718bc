//! The configuration of the agent: valid values, error messages, and the examples in docs/haproxy.md.

use std::path::Path;

use banmesh::config::{ConfigErrors, Loaded, resolve};

fn read(text: &str) -> Result<Loaded, ConfigErrors> {
    resolve(Some((Path::new("config.yaml"), text.as_bytes())), [])
}

fn error(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

fn warnings(text: &str) -> String {
    read(text).unwrap().warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn tls_needs_its_files_and_a_separate_port() {
    let text = error("spoa: { tls: { enabled: true } }\n");
    assert!(text.contains("spoa.tls.certificate is missing") && text.contains("spoa.tls.key is missing"), "{text}");
    let same = "spoa: { tls: { enabled: true, certificate: /c, key: /k, address: \"127.0.0.1:12345\" } }\n";
    assert!(error(same).contains("port 12345 is also used by"), "{}", error(same));
    // If the plaintext listener is disabled, its port is free.
    let alone = same.replace("spoa: {", "spoa: { enabled: false,");
    let loaded = read(&alone).unwrap();
    assert!(!loaded.config.spoa.enabled && loaded.config.spoa.tls.enabled);
}

#[test]
fn reports_from_every_address_are_a_warning() {
    assert_eq!(warnings("spoa: { address: 127.0.0.1 }\n"), "");
    for every_address in ["[0.0.0.0/0]", "[127.0.0.0/8, \"::/0\"]"] {
        let text = warnings(&format!("spoa: {{ reports_from: {every_address} }}\n"));
        assert!(text.contains("spoa.reports_from") && text.contains("ban any address"), "{text}");
    }
    assert_eq!(warnings("spoa: { reports_from: [0.0.0.0/0], allowed_clients: [192.0.2.1] }\n"), "");
    assert_eq!(
        warnings(
            "spoa: { address: 127.0.0.1, reports_from: [] }
"
        ),
        ""
    );
    // Any process of this host could report.
    assert!(read("").unwrap().config.spoa.reports_from.is_empty());
}

#[test]
fn an_agent_that_everybody_can_reach_is_a_warning() {
    for open in ["", "spoa: { address: 192.0.2.1 }\n", "spoa: { address: \"::\" }\n"] {
        let text = warnings(open);
        assert!(text.contains("anyone who can reach") && text.contains("spoa.allowed_clients"), "{open}: {text}");
    }
    let tls =
        "spoa: { address: 127.0.0.1, tls: { enabled: true, address: \"0.0.0.0:12347\", certificate: /c, key: /k } }\n";
    assert!(warnings(tls).contains("spoa.tls.address"), "{}", warnings(tls));
    let safe = [
        "spoa: { address: 127.0.0.1 }\n",
        "spoa: { allowed_clients: [192.0.2.7] }\n",
        "spoa: { enabled: false }\n",
        &tls.replace("key: /k", "key: /k, client_ca: /a"),
    ];
    for safe in safe {
        assert_eq!(warnings(safe), "", "{safe}");
    }
}

#[test]
fn every_agent_configuration_in_the_guide_is_valid() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/haproxy.md");
    let page = std::fs::read_to_string(page).unwrap();
    // Blocks in a list are indented.
    let text = page.lines().map(|line| line.strip_prefix("   ").filter(|_| line.contains("spoa:")).unwrap_or(line));
    let text = text.collect::<Vec<_>>().join("\n");
    let blocks: Vec<&str> = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let agents: Vec<&&str> = blocks.iter().filter(|block| block.starts_with("spoa:")).collect();
    assert!(agents.len() >= 3, "{blocks:?}");
    for block in agents {
        assert_eq!(warnings(block), "", "{block}");
    }
}
