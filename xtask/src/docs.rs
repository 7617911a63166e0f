//! Documents that are generated from code, and the check that they are what the code says.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// A file, from the workspace's root, and where its text comes from.
type Document = (&'static str, fn() -> String);

const DOCUMENTS: &[Document] = &[("docs/METRICS.md", telemetry::metrics_markdown)];

/// Writes the generated documents.
///
/// # Errors
/// A file cannot be written.
pub fn write() -> Result<()> {
    for (name, text) in DOCUMENTS {
        let path = root().join(name);
        fs::write(&path, text()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Compares the generated documents with what would be written.
///
/// # Errors
/// Names the first one that differs and its first line that does.
pub fn check() -> Result<()> {
    for (name, text) in DOCUMENTS {
        let path = root().join(name);
        let found = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if let Some(line) = first_difference(&found, &text()) {
            bail!("{name} is not what the code says, from line {line} on: run `cargo xtask docs --write`");
        }
    }
    Ok(())
}

/// The repository, as cargo tells it when it runs us: the path of the build may be that of another clone with the same
/// target directory.
fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(package).join("..")
}

/// Number of the first line that differs, from 1.
fn first_difference(a: &str, b: &str) -> Option<usize> {
    if a == b {
        return None;
    }
    let same = a.split('\n').zip(b.split('\n')).take_while(|(a, b)| a == b).count();
    Some(same + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found() {
        fn check(a: &str, b: &str, expect: Option<usize>) {
            assert_eq!(first_difference(a, b), expect, "{a:?} {b:?}");
        }
        check("", "", None);
        check("a\nb\n", "a\nb\n", None);
        check("a\nb\n", "a\nc\n", Some(2));
        check("a\n", "a", Some(2));
        check("a\n", "a\nb\n", Some(2));
    }
}
