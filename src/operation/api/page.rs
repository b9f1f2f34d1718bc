//! The files of the web page, compiled in. They hold no data; the page requests it from the API with the credentials of its user.

use std::sync::LazyLock;

use axum::extract::OriginalUri;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use xxhash_rust::xxh3::xxh3_64;

use super::errors;

/// The Content Security Policy (W3C, level 3): the page may load its own files and use its own API, and text cannot become code.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; frame-ancestors 'none'; form-action 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

/// The browser revalidates each time, and gets 304 unless the version of banmesh has changed.
const CACHING: &str = "no-cache";

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// A file of the page. `name` is its path below `/ui/`.
struct File {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

macro_rules! files {
    ($($name:literal: $kind:expr),* $(,)?) => {
        [$(File { name: $name, kind: $kind, text: include_str!(concat!("page/", $name)) }),*]
    };
}

static INDEX: File = File { name: "", kind: "text/html; charset=utf-8", text: include_str!("page/index.html") };

static FILES: [File; 19] = files! {
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "app.js": JAVASCRIPT,
    "activity.js": JAVASCRIPT,
    "api.js": JAVASCRIPT,
    "bans.js": JAVASCRIPT,
    "charts.js": JAVASCRIPT,
    "cluster.js": JAVASCRIPT,
    "columns.js": JAVASCRIPT,
    "dialogs.js": JAVASCRIPT,
    "elements.js": JAVASCRIPT,
    "grid.js": JAVASCRIPT,
    "links.js": JAVASCRIPT,
    "panels.js": JAVASCRIPT,
    "selection.js": JAVASCRIPT,
    "tables.js": JAVASCRIPT,
    "targets.js": JAVASCRIPT,
    "verdict.js": JAVASCRIPT,
    "why.js": JAVASCRIPT,
};

/// `GET /`.
pub async fn index(headers: HeaderMap) -> Response {
    answer(&INDEX, &headers)
}

/// `GET /ui/{name}`.
pub async fn file(headers: HeaderMap, uri: OriginalUri) -> Response {
    let name = uri.path().strip_prefix("/ui/");
    match FILES.iter().find(|file| Some(file.name) == name) {
        Some(file) => answer(file, &headers),
        None => errors::no_such_path(uri).await.into_response(),
    }
}

/// The hash of all files together, so that a browser never mixes two versions.
static TAG: LazyLock<String> = LazyLock::new(|| {
    let all: String = FILES.iter().chain([&INDEX]).map(|file| file.text).collect();
    format!("\"{:016x}\"", xxh3_64(all.as_bytes()))
});

fn answer(file: &File, headers: &HeaderMap) -> Response {
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut known = known.flat_map(|tags| tags.split(',')).map(|tag| tag.trim().trim_start_matches("W/"));
    let common: [(HeaderName, &str); 6] = [
        (ETAG, TAG.as_str()),
        (CACHE_CONTROL, CACHING),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (X_FRAME_OPTIONS, "DENY"),
    ];
    if known.any(|tag| tag == TAG.as_str()) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    (common, [(CONTENT_TYPE, file.kind)], file.text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_refers_only_to_its_own_files() {
        let mut named = 0;
        for file in FILES.iter().chain([&INDEX]) {
            for (at, _) in file.text.match_indices("/ui/") {
                let name: String =
                    file.text[at + 4..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '.').collect();
                assert!(FILES.iter().any(|file| file.name == name), "{} names {name}", file.name);
                named += 1;
            }
            for foreign in ["http://", "https://", "//cdn", "innerHTML", "outerHTML", "document.write", "eval("] {
                // The SVG namespace is not a link.
                let text = file.text.replace("http://www.w3.org/2000/svg", "");
                assert!(!text.contains(foreign), "{} has {foreign}", file.name);
            }
            for inline in [" style=", " onclick=", "<style", "<script>"] {
                assert!(!file.text.contains(inline), "{} has {inline}, which its policy forbids", file.name);
            }
        }
        assert!(named >= 3, "{named}");
    }

    #[test]
    fn a_matching_etag_is_answered_with_304() {
        let ask = |tag: Option<&str>| {
            let headers = tag.map(|tag| (IF_NONE_MATCH, tag.parse().unwrap()));
            answer(&FILES[0], &headers.into_iter().collect())
        };
        let first = ask(None);
        assert_eq!(first.status(), StatusCode::OK);
        let tag = first.headers()[ETAG].to_str().unwrap().to_owned();
        for same in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}")] {
            let again = ask(Some(&same));
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{same}");
            assert_eq!(again.headers()[CONTENT_SECURITY_POLICY], POLICY);
        }
        assert_eq!(ask(Some("\"x\"")).status(), StatusCode::OK);
    }
}
