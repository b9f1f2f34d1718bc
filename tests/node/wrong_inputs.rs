//! docs/wrong-inputs.md: what the command line says about wrong inputs. `BANMESH_UPDATE=1` writes the messages into the table.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::api::node::start;

const HEADING: &str = "| command | message |\n|---|---|\n";

/// The commands of the table. They need no running node, or one without bans whose allowlist is 10.0.0.0/8.
const COMMANDS: [&str; 33] = [
    "banmesh ban",
    "banmesh ban 1.2.3",
    "banmesh ban 192.0.2.7 --for 10",
    "banmesh ban 192.0.2.7 --for '10 parsecs'",
    "banmesh ban 192.0.2.7 --for 0s",
    "banmesh ban 192.0.2.7 --for 1h --permanent",
    "banmesh ban 0.0.0.0/0",
    "banmesh ban 10.0.0.0/33",
    "banmesh ban 198.51.100.1/8",
    "banmesh ban 127.0.0.1",
    "banmesh ban 10.1.2.3",
    "banmesh ban --file /nonexistent",
    "banmesh unban 192.0.2.99",
    "banmesh unban all",
    "banmesh list --filter nosuch",
    "banmesh list --sort size",
    "banmesh list --within yesterday",
    "banmesh list --network 192.0.2.0/240",
    "banmesh list --all --state active",
    "banmesh why 192.0.2.0/24",
    "banmesh why",
    "banmesh allow 0.0.0.0/0",
    "banmesh allow --remove 192.0.2.1 192.0.2.2",
    "banmesh disallow 192.0.2.5",
    "banmesh purge --filter nosuch",
    "banmesh statsu",
    "banmesh top sauces",
    "banmesh top -n 0",
    "banmesh status --watch=0",
    "banmesh status --user ann",
    "banmesh status --url node1:8888",
    "banmesh check --offline --config /nonexistent.yaml",
    "banmesh filter show nosuch",
];

/// The words of a command line with single quotes.
fn words(line: &str) -> Vec<String> {
    let parts = line.split('\'').enumerate();
    let split = |(index, part): (usize, &str)| match index % 2 {
        0 => part.split_whitespace().map(str::to_owned).collect(),
        _ => vec![part.to_owned()],
    };
    parts.flat_map(split).collect()
}

/// What `line` says on standard error, as a cell of the table.
fn message(line: &str, socket: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_banmesh"))
        .args(&words(line)[1..])
        .env("BANMESH_SOCKET", socket)
        .env_remove("BANMESH_URL")
        .env_remove("BANMESH_TOKEN")
        .output()
        .unwrap();
    assert!(!output.status.success(), "`{line}` is not wrong");
    let text = String::from_utf8(output.stderr).unwrap();
    let lines = text.lines().map(str::trim).filter(|line| {
        let chatter = line.is_empty() || line.starts_with("Usage:") || line.starts_with("For more information");
        !chatter
    });
    let cells: Vec<String> = lines.map(|line| line.replace('|', "\\|").replace('<', "&lt;")).collect();
    assert!(!cells.is_empty(), "`{line}` says nothing");
    cells.join("<br>")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_inputs_have_the_messages_in_the_documentation() {
    let node = start(&["10.0.0.0/8"]).await;
    let socket = node.socket.clone();
    let rows = move || COMMANDS.map(|line| format!("| `{line}` | {} |\n", message(line, &socket))).concat();
    let table = tokio::task::spawn_blocking(rows).await.unwrap();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/wrong-inputs.md");
    let document = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = document.split_once(HEADING).unwrap();
    let end = rest.find("\n\n").map_or(rest.len(), |at| at + 1);
    let (written, after) = rest.split_at(end);
    if std::env::var_os("BANMESH_UPDATE").is_some() {
        std::fs::write(&path, format!("{before}{HEADING}{table}{after}")).unwrap();
        return;
    }
    for (written, real) in written.lines().zip(table.lines()) {
        assert_eq!(written, real, "run `BANMESH_UPDATE=1 cargo test --test node wrong_inputs`");
    }
    assert_eq!(written.lines().count(), COMMANDS.len());
}
