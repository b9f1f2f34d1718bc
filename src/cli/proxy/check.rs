//! `banmesh nginx check` and the same for the other proxies.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::nginx::Directive;
use super::subject::Source;
use super::{Proxy, caddy, envoy, nginx, ports, traefik};
use crate::cli::findings;
use crate::cli::output::Output;
use crate::config;
use banmesh_haproxy::{Finding, Severity};

/// Larger files are refused.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// The most files that nginx may include, and how deep.
const MAX_FILES: (usize, usize) = (1000, 10);

/// Arguments of `check`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Exit codes: 0 no errors, 1 errors (with --strict also warnings), 2 a file cannot be read.

Examples:
  banmesh nginx check
  banmesh traefik check --strict /etc/traefik/traefik.yaml /etc/traefik/banmesh.yaml
  banmesh caddy check --json /etc/caddy/Caddyfile
  banmesh envoy check /etc/envoy/envoy.yaml")]
pub struct CheckArgs {
    /// Files of the proxy; - is standard input [default: where its package has them]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Exit with 1 on warnings, too
    #[arg(long)]
    strict: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the findings. Exit code 0: no errors; 1: errors (or warnings, if `strict`); 2: a file cannot be read.
pub fn run(proxy: Proxy, args: &CheckArgs, path: Option<&Path>) -> ExitCode {
    let found = match examine(proxy, args, path) {
        Ok(found) => found,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let mut out = Output::stdout(args.json);
    let printed = if out.json {
        let ok = findings::count(&found, Severity::Error) == 0;
        out.json(&serde_json::json!({ "ok": ok, "proxy": proxy.command(), "findings": findings::rows(&found) }))
    } else {
        findings::print(&found, proxy.name(), &mut out)
    };
    // A closed pipe is not an error.
    let _ = printed.and_then(|()| out.flush());
    let worst = if args.strict { Severity::Warning } else { Severity::Error };
    ExitCode::from(u8::from(found.iter().any(|finding| finding.severity <= worst)))
}

fn examine(proxy: Proxy, args: &CheckArgs, path: Option<&Path>) -> Result<Vec<Finding>, String> {
    let config = match config::load(path, config::process_environment()) {
        Ok(loaded) => loaded.config,
        // A configuration given with --config must be valid. Otherwise the defaults are the fallback.
        Err(errors) if path.is_some() => return Err(errors.to_string()),
        Err(_) => config::Config::default(),
    };
    let ports = ports(&config);
    let files = if args.files.is_empty() { vec![usual(proxy)] } else { args.files.clone() };
    let sources = files.iter().map(|file| read(file)).collect::<Result<Vec<_>, _>>()?;
    Ok(match proxy {
        Proxy::Nginx => {
            let mut root = Directive::default();
            let mut left = MAX_FILES.0;
            for (source, file) in sources.iter().zip(&files) {
                let mut parsed = nginx::parse(source);
                let folder = file.parent().unwrap_or(Path::new("."));
                include(&mut parsed, folder, MAX_FILES.1, &mut left)?;
                root.block.append(&mut parsed.block);
            }
            nginx::check(&root, &ports)
        }
        Proxy::Traefik => traefik::check(&sources, &ports),
        Proxy::Caddy => caddy::check(&sources, &ports),
        Proxy::Envoy => envoy::check(&sources, &ports),
    })
}

/// Where the package of the proxy has its configuration.
fn usual(proxy: Proxy) -> PathBuf {
    PathBuf::from(match proxy {
        Proxy::Nginx => "/etc/nginx/nginx.conf",
        Proxy::Traefik => "/etc/traefik/traefik.yaml",
        Proxy::Caddy => "/etc/caddy/Caddyfile",
        Proxy::Envoy => "/etc/envoy/envoy.yaml",
    })
}

fn read(path: &Path) -> Result<Source, String> {
    let failed = |error: io::Error| format!("cannot read {}: {error}", path.display());
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        io::stdin().lock().take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("cannot read {}: larger than {} MiB", path.display(), MAX_BYTES >> 20));
    }
    let name = if path == Path::new("-") { "stdin".into() } else { path.display().to_string().into() };
    Ok(Source { name, text: String::from_utf8_lossy(&bytes).into_owned() })
}

/// Replaces each `include` of nginx by what the files have. Files that do not exist are skipped, as nginx does for patterns.
fn include(into: &mut Directive, folder: &Path, depth: usize, left: &mut usize) -> Result<(), String> {
    let mut block = Vec::with_capacity(into.block.len());
    for mut directive in std::mem::take(&mut into.block) {
        let pattern = match directive.words.as_slice() {
            [name, pattern] if name == "include" => folder.join(pattern).display().to_string(),
            _ => {
                include(&mut directive, folder, depth, left)?;
                block.push(directive);
                continue;
            }
        };
        let found = glob::glob(&pattern).map_err(|error| format!("include {pattern}: {error}"))?;
        for file in found.flatten() {
            if depth == 0 || *left == 0 {
                return Err(format!(
                    "{}: the configuration includes more than {} files, or more than {} levels of them; check its parts",
                    file.display(),
                    MAX_FILES.0,
                    MAX_FILES.1
                ));
            }
            *left -= 1;
            let mut parsed = nginx::parse(&read(&file)?);
            include(&mut parsed, folder, depth - 1, left)?;
            block.append(&mut parsed.block);
        }
    }
    into.block = block;
    Ok(())
}
