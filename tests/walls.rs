//! The walls of the architecture: the pure layers name nothing impure, and imports point up one list only.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};

/// The layers, each of which may import only itself and those before it.
const LAYERS: [&str; 6] = ["domain", "proto", "config", "service", "app", "cli"];

/// What the pure layers may not name, and why.
const IMPURE: [(&str, &str); 16] = [
    ("tokio", "a runtime"),
    ("std::fs", "files"),
    ("File::", "files"),
    ("std::env", "the environment"),
    ("std::process", "processes"),
    ("std::thread", "threads"),
    ("TcpStream", "sockets"),
    ("TcpListener", "sockets"),
    ("UdpSocket", "sockets"),
    ("UnixStream", "sockets"),
    ("std::os", "the operating system"),
    ("SystemTime", "a clock"),
    ("Instant", "a clock"),
    ("getrandom", "randomness"),
    ("async fn", "a runtime"),
    ("tracing", "logs"),
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The source lines of a layer without comments and without test modules: file, line number, text.
fn code(layer: &str) -> Vec<(PathBuf, usize, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let (directory, file) = (root.join(layer), root.join(format!("{layer}.rs")));
    if directory.is_dir() {
        sources(&directory, &mut files);
    }
    if file.is_file() {
        files.push(file);
    }
    assert!(!files.is_empty(), "the layer {layer} has no sources");
    let mut lines = Vec::new();
    for path in files {
        if path.file_name().is_some_and(|name| name == "tests.rs")
            || path.components().any(|part| part.as_os_str() == "tests")
        {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            // Test modules stand at the end of a file.
            if line.starts_with("#[cfg(test)]") {
                break;
            }
            let line = line.split("//").next().unwrap_or_default();
            lines.push((path.clone(), number + 1, line.to_owned()));
        }
    }
    lines
}

#[test]
fn the_pure_layers_name_nothing_impure() {
    let mut breaches = Vec::new();
    for layer in ["domain", "proto"] {
        for (path, number, line) in code(layer) {
            for (name, what) in IMPURE {
                if line.contains(name) {
                    breaches.push(format!("{}:{number}: names {what}: {}", path.display(), line.trim()));
                }
            }
        }
    }
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

#[test]
fn imports_point_up_the_list_only() {
    let mut breaches = Vec::new();
    for (position, layer) in LAYERS.iter().enumerate() {
        for (path, number, line) in code(layer) {
            for below in &LAYERS[position + 1..] {
                if line.contains(&format!("crate::{below}")) {
                    breaches.push(format!("{}:{number}: {layer} imports {below}: {}", path.display(), line.trim()));
                }
            }
        }
    }
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

#[test]
fn a_file_holds_one_subject() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let long: Vec<String> = files
        .iter()
        .map(|path| (path, fs::read_to_string(path).unwrap().lines().count()))
        .filter(|(_, lines)| *lines > 650)
        .map(|(path, lines)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "files that hold more than one subject?\n{}", long.join("\n"));
}
