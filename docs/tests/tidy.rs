//! What must hold of the whole repository and no compiler checks: headers, paths, dependencies.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every file below `dir` whose name ends in `ending`, build output left out.
fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(files(&path, ending));
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn every_source_file_says_what_lives_there() {
    let silent: Vec<_> =
        files(&root(), ".rs").into_iter().filter(|path| !read(path).starts_with("//!")).collect();
    assert!(silent.is_empty(), "no header: {silent:?}");
}

#[test]
fn no_rust_block_in_the_documents_is_left_uncompiled() {
    for path in files(&root(), ".md") {
        let text = read(&path);
        for block in text.lines().filter(|line| line.starts_with("```rust,")) {
            assert!(!block.contains("ignore"), "{}: {block}", path.display());
        }
    }
}

#[test]
fn every_page_of_the_guide_is_listed_and_compiled() {
    let guide = root().join("docs/guide");
    let (summary, compiled) =
        (read(&guide.join("SUMMARY.md")), read(&root().join("docs/src/lib.rs")));
    for path in files(&guide, ".md") {
        let page = path.strip_prefix(&guide).unwrap().to_str().unwrap();
        if page == "SUMMARY.md" {
            continue;
        }
        assert!(summary.contains(&format!("({page})")), "{page} is not in SUMMARY.md");
        let has_rust = read(&path).lines().any(|line| line == "```rust");
        assert!(!has_rust || compiled.contains(page), "{page} is not in docs/src/lib.rs");
    }
}

#[test]
fn paths_named_in_the_documents_exist() {
    for document in ["ARCHITECTURE.md", "README.md", "CONTRIBUTING.md"] {
        let text = read(&root().join(document));
        let quoted = text.split('`').skip(1).step_by(2);
        let is_path = |word: &&str| {
            let known = ["storage", "conformance-tests/", "benches/", "docs/", "scripts/"];
            word.contains('/')
                && !word.contains(|c: char| c.is_whitespace() || ":*{<".contains(c))
                && known.iter().any(|start| word.starts_with(start))
        };
        for path in quoted.filter(is_path) {
            assert!(root().join(path).exists(), "{document} names {path}, which does not exist");
        }
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://") && !link.starts_with('#')) {
            assert!(root().join(link).exists(), "{document} links to {link}");
        }
    }
}

/// The names under `[dependencies]` of a crate.
fn dependencies(name: &str) -> Vec<String> {
    let manifest = read(&root().join(name).join("Cargo.toml"));
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    let names = lines.filter_map(|line| line.split(['.', ' ', '=']).next());
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[test]
fn dependencies_point_one_way() {
    let of_core = dependencies("storage-core");
    for driver in ["sqlx", "tokio-postgres", "arrow", "parquet", "object_store", "pco"] {
        assert!(!of_core.iter().any(|name| name == driver), "core depends on {driver}");
    }
    let ours = [
        "storage-sqlite",
        "storage-postgres",
        "storage-parquet",
        "storage",
        "storage-cli",
        "conformance-tests",
    ];
    for (name, allowed) in [
        ("storage-core", &[][..]),
        ("storage-sqlite", &["storage-core"][..]),
        ("storage-postgres", &["storage-core"][..]),
        ("storage-parquet", &["storage-core"][..]),
        ("conformance-tests", &["storage-core"][..]),
    ] {
        for dependency in dependencies(name).iter().filter(|d| ours.contains(&d.as_str())) {
            assert!(allowed.contains(&dependency.as_str()), "{name} depends on {dependency}");
        }
    }
}
