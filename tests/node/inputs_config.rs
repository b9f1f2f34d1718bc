//! The configuration of inputs: valid values and error messages.

use std::path::Path;

use banmesh::config::{ConfigErrors, FileInput, Loaded, resolve};
use banmesh::inputs::envelope::LineFormat;

fn read(text: &str) -> Result<Loaded, ConfigErrors> {
    resolve(Some((Path::new("config.yaml"), text.as_bytes())), [])
}

fn error(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

fn file(path: &str, program: Option<&str>) -> FileInput {
    FileInput { path: path.to_owned(), program: program.map(str::to_owned), format: LineFormat::Plain }
}

#[test]
fn files_are_paths_or_maps_with_a_program() {
    let wanted = [file("/var/log/mail.log", None), file("/var/log/nginx/*access.log", Some("nginx"))];
    let text =
        "inputs:\n  files:\n    - /var/log/mail.log\n    - { path: \"/var/log/nginx/*access.log\", program: nginx }\n";
    let loaded = read(text).unwrap();
    assert_eq!(loaded.config.inputs.files, wanted);
    for value in [
        "/var/log/mail.log, /var/log/x.log",
        "[/var/log/mail.log, /var/log/x.log]",
        r#"["/var/log/mail.log", {"path": "/var/log/x.log"}]"#,
    ] {
        let loaded = resolve(None, [("FAIL2BAN_INPUTS_FILES".to_owned(), value.to_owned())]).unwrap();
        assert_eq!(loaded.config.inputs.files, [file("/var/log/mail.log", None), file("/var/log/x.log", None)]);
    }
}

#[test]
fn errors_in_files_name_the_line() {
    for (item, wanted) in [
        ("mail.log", "must be an absolute path"),
        ("\"/var/log/[\"", "is not a valid glob"),
        ("{ path: /a, programm: x }", "program"),
        ("{ program: x }", "is missing"),
        ("{ path: /a, program: \"a b\" }", "the program must be a single word"),
        ("{ path: /a, format: crii }", "did you mean cri?"),
        ("{ path: /a, format: nested, program: x }", "the lines name the program"),
        ("7", "expected a path"),
    ] {
        let text = error(&format!("inputs:\n  files:\n    - /good\n    - {item}\n"));
        assert!(text.contains(wanted) && text.contains("config.yaml:4") && text.contains("inputs.files[1]"), "{text}");
    }
    assert!(error("inputs: { files: /a }\n").contains("expected a list of paths"));
}

#[test]
fn tls_needs_its_files_and_a_separate_port() {
    let text = error("syslog: { tls: { enabled: true } }\n");
    assert!(text.contains("syslog.tls.certificate is missing") && text.contains("syslog.tls.key is missing"), "{text}");
    let text = error(
        "syslog: { protocol: both, tls: { enabled: true, certificate: /c, key: /k, address: \"127.0.0.1:514\" } }\n",
    );
    assert!(text.contains("port 514 is also used by"), "{text}");
    let open = "syslog: { tls: { enabled: true, certificate: /c, key: /k, address: \"0.0.0.0:6514\" } }\n";
    let loaded = read(open).unwrap();
    assert!(loaded.warnings.iter().any(|warning| warning.to_string().contains("syslog.tls.client_ca")));
}

#[test]
fn formats_of_listeners_are_checked() {
    assert!(error("syslog: { format: crii }\n").contains("did you mean cri?"));
    assert!(error("syslog: { format: nested, format_programs: [\"a b\"] }\n").contains("is not the name of a program"));
    let text = error("inputs: { journal: { enabled: true, format: auto } }\n");
    assert!(text.contains("inputs.journal.format: auto is not possible for the journal"), "{text}");
    let loaded = read("syslog: { format: nested, format_programs: [mail, \"k8s-*\"] }\n").unwrap();
    assert_eq!(loaded.config.syslog.format, LineFormat::Nested);
    assert!(loaded.config.syslog.format_programs.iter().any(|pattern| pattern.0.matches("k8s-web")));
}

#[test]
fn arguments_for_journalctl_cannot_be_options() {
    assert!(error("inputs: { journal: { units: [--root=/tmp] } }\n").contains("inputs.journal.units"));
    assert!(error("inputs: { journal: { matches: [sshd] } }\n").contains("write FIELD=value"));
    read("inputs: { journal: { units: [ssh.service], matches: [_UID=0, +, _COMM=sshd] } }\n").unwrap();
}
