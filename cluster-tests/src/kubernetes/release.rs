//! What the chart and the image bring: the rendered objects, and the image's environment.

use std::path::PathBuf;
use std::process::Command;

use serde::Deserialize as _;
use serde_json::Value;

use super::NAMESPACE;
use crate::{in_ci, repository_file};

/// The objects that the chart renders.
#[derive(Debug, Clone)]
pub struct Release(pub(super) Vec<Value>);

impl Release {
    /// Renders `helm/banmesh` with values files and `--set`s, as release `t` in the namespace `edge`. Prints a message and returns
    /// `None` if Helm is missing.
    ///
    /// # Panics
    /// The chart cannot be rendered; in continuous integration, also if Helm is missing.
    pub fn render(values: &[&str], set: &[&str]) -> Option<Self> {
        let Some(helm) = helm() else {
            assert!(!in_ci(), "Helm must not be missing in CI: scripts/test-packaging tools fetches it");
            eprintln!("skipped: no Helm here (scripts/test-packaging tools fetches it)");
            return None;
        };
        let chart = repository_file("helm/banmesh");
        let mut command = Command::new(helm);
        command.args(["template", "t", "--namespace", NAMESPACE, "--kube-version", "1.34.0"]).arg(&chart);
        command.args(["--set", "cluster.keyring.generate=true"]);
        for file in values {
            command.arg("-f").arg(chart.join(file));
        }
        for one in set {
            command.args(["--set", one]);
        }
        let output = command.output().expect("run helm");
        assert!(output.status.success(), "helm: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let objects = serde_yaml::Deserializer::from_str(&text)
            .map(|document| Value::deserialize(document).expect("the chart makes YAML"));
        Some(Self(objects.filter(|object| !object.is_null()).collect()))
    }

    /// The object of a kind and name.
    ///
    /// # Panics
    /// The chart renders no such object.
    pub fn object(&self, kind: &str, name: &str) -> &Value {
        let found = self.0.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("the chart makes no {kind} {name}"))
    }

    pub(super) fn workload(&self) -> &Value {
        let found = self.0.iter().find(|object| object["kind"] == "StatefulSet" || object["kind"] == "DaemonSet");
        found.expect("the chart makes a StatefulSet or a DaemonSet")
    }

    pub(super) fn services(&self) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(|object| object["kind"] == "Service")
    }
}

fn helm() -> Option<PathBuf> {
    let named = [repository_file(".venv/bin/helm"), PathBuf::from("helm")];
    named
        .into_iter()
        .find(|helm| Command::new(helm).arg("version").output().is_ok_and(|output| output.status.success()))
}

/// The variables of the image, from its Dockerfile.
pub(super) fn image_environment() -> Vec<(String, String)> {
    let file = std::fs::read_to_string(repository_file("deploy/docker/Dockerfile")).expect("read the Dockerfile");
    let last = file.rsplit("\nFROM ").next().unwrap_or_default().replace("\\\n", " ");
    let settings = last.lines().filter_map(|line| line.strip_prefix("ENV ")).flat_map(str::split_whitespace);
    let found: Vec<_> = settings
        .map(|setting| setting.split_once('=').expect("NAME=VALUE"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert!(found.iter().any(|(name, _)| name == "PATH"), "the Dockerfile sets PATH: {found:?}");
    found
}
