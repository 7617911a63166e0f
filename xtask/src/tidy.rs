//! Rules that no compiler checks: which crate may know which, and what must not stand in a tracked file.
//!
//! Every rule is a function from what was read to a list of complaints, one line each.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Which workspace crates a crate may depend on. A crate that is not named here is a complaint: it must say its place.
const DIRECTION: &[(&str, &[&str])] = &[
    ("kvmetry", &["libvirt-rpc", "telemetry", "store", "journal", "disk"]),
    ("store", &["telemetry", "disk"]),
    ("journal", &["disk"]),
    ("disk", &[]),
    ("libvirt-rpc", &[]),
    ("telemetry", &[]),
    ("xtask", &["kvmetry", "libvirt-rpc", "telemetry", "store", "journal", "disk"]),
];

/// The same for dev-dependencies, where they may do more: tests of the binary start VMs.
const DEV_DIRECTION: &[(&str, &[&str])] = &[("kvmetry", &["xtask"]), ("disk", &["disk"])];

/// Crates that nothing here may bring in: the C library's bindings.
const BANNED: &[&str] = &["virt", "virt-sys"];

/// Families that only the store may bring in; a collector without store has none of them.
const STORE_ONLY: &[&str] = &["arrow", "datafusion", "parquet"];

/// Most lines of the binary's `main.rs`: it parses and calls, `pipeline.rs` is where reading begins.
const MAIN_LINES: usize = 60;

/// Checks everything.
///
/// # Errors
/// The complaints, a line each; or cargo or git could not be asked.
pub fn tidy() -> Result<()> {
    let metadata: Value =
        serde_json::from_str(&output("cargo", &["metadata", "--format-version", "1", "--locked"])?)?;
    let root =
        PathBuf::from(metadata["workspace_root"].as_str().context("cargo metadata names no workspace")?);
    let (crates, packages) = read_metadata(&metadata);

    let mut complaints = check_direction(&crates);
    complaints.extend(check_banned(&packages));
    let tree =
        ["tree", "-p", "kvmetry", "--no-default-features", "-e", "normal", "--prefix", "none", "--locked"];
    complaints.extend(check_collector(&output("cargo", &tree)?));
    let main = root.join("crates/kvmetry/src/main.rs");
    let lines =
        fs::read_to_string(&main).with_context(|| format!("cannot read {}", main.display()))?.lines().count();
    if lines >= MAIN_LINES {
        complaints.push(format!(
            "crates/kvmetry/src/main.rs has {lines} lines, at most {} are allowed",
            MAIN_LINES - 1
        ));
    }

    let home = std::env::var("HOME").unwrap_or_default();
    // With a slash behind: `/root` alone is also the beginning of many a harmless word. A checkout or a home right
    // below `/` may be called as anything is.
    let private: Vec<String> = [root.to_string_lossy().as_ref(), &home]
        .iter()
        .filter(|path| path.matches('/').count() > 1)
        .map(|path| format!("{path}/"))
        .collect();
    let root_text = root.to_string_lossy();
    for file in output("git", &["-C", &root_text, "ls-files", "-z"])?.split('\0').filter(|it| !it.is_empty())
    {
        // Binary files and those that were just deleted have no text to check.
        if let Ok(text) = fs::read_to_string(root.join(file)) {
            complaints.extend(check_text(file, &text, &private));
        }
    }
    for manifest in crates.iter().map(|it| &it.manifest) {
        let text =
            fs::read_to_string(manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
        complaints.extend(check_manifest(manifest, &text));
    }
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("{} things are not tidy\n{}", complaints.len(), complaints.join("\n"))
}

/// A crate of the workspace.
struct Crate {
    name: String,
    manifest: PathBuf,
    /// Names of workspace crates that it depends on, and whether only its tests do.
    needs: Vec<(String, bool)>,
}

fn output(program: &str, args: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(args).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The workspace's crates, and the names of all packages that the lock file holds for it.
fn read_metadata(metadata: &Value) -> (Vec<Crate>, Vec<String>) {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages = list(&metadata["packages"]);
    let members = list(&metadata["workspace_members"]);
    let ours: Vec<&Value> = packages.iter().filter(|it| members.contains(&it["id"])).collect();
    let names: Vec<String> = ours.iter().map(|it| text(&it["name"])).collect();
    let crates = ours
        .iter()
        .map(|it| Crate {
            name: text(&it["name"]),
            manifest: text(&it["manifest_path"]).into(),
            needs: list(&it["dependencies"])
                .iter()
                .map(|need| (text(&need["name"]), need["kind"] == "dev"))
                .filter(|(name, _)| names.contains(name))
                .collect(),
        })
        .collect();
    (crates, packages.iter().map(|it| text(&it["name"])).collect())
}

fn check_direction(crates: &[Crate]) -> Vec<String> {
    let allowed = |table: &[(&str, &'static [&'static str])], name: &str| {
        table.iter().find(|(it, _)| *it == name).map(|(_, needs)| *needs)
    };
    let mut complaints = Vec::new();
    for it in crates {
        let Some(usual) = allowed(DIRECTION, &it.name) else {
            complaints.push(format!(
                "crate {} has no place in the order of crates: name it in xtask's DIRECTION",
                it.name
            ));
            continue;
        };
        let dev = allowed(DEV_DIRECTION, &it.name).unwrap_or_default();
        for (need, only_tests) in &it.needs {
            let need = need.as_str();
            if !(usual.contains(&need) || *only_tests && dev.contains(&need)) {
                complaints.push(format!("crate {} must not depend on {need}", it.name));
            }
        }
    }
    complaints
}

fn check_banned(packages: &[String]) -> Vec<String> {
    let banned = packages.iter().filter(|it| BANNED.contains(&it.as_str()));
    banned.map(|it| format!("{it} is in the lock file: the C library must not be needed")).collect()
}

/// `tree` is what `cargo tree --prefix none` prints: `NAME vVERSION …` a line.
fn check_collector(tree: &str) -> Vec<String> {
    let family = |name: &str| name.split('-').next().unwrap_or_default().to_owned();
    tree.lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| STORE_ONLY.contains(&family(name).as_str()))
        .map(|name| {
            format!("{name} is needed by kvmetry without default features: only the store may name it")
        })
        .collect()
}

fn check_manifest(path: &Path, text: &str) -> Vec<String> {
    let inherits =
        text.split("[lints]").nth(1).is_some_and(|it| it.trim_start().starts_with("workspace = true"));
    if inherits {
        return Vec::new();
    }
    vec![format!("{} does not take the workspace's lints: add `[lints]`, `workspace = true`", path.display())]
}

/// Where crates come from as Cargo.lock writes it; any other address of a registry belongs into a developer's own
/// configuration.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn check_text(file: &str, text: &str, private: &[String]) -> Vec<String> {
    // Put together here, so that this file does not complain about itself.
    let homes = [concat!("/ho", "me/"), concat!("/Us", "ers/"), concat!("/ro", "ot/")];
    let registries = ["registry+", "sparse+", "[source.", "[registries", "replace-with"];
    let mut complaints = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut complain = |what: String| complaints.push(format!("{file}:{}: {what}", number + 1));
        if let Some(path) = private.iter().map(String::as_str).chain(homes).find(|path| line.contains(path)) {
            complain(format!("names a path of one machine ({path})"));
        }
        let others = line.replace(CRATES_IO, "");
        if file != THIS_FILE && registries.iter().any(|mark| others.contains(mark)) {
            complain("names a registry: that belongs into a developer's own cargo configuration".into());
        }
        if file.ends_with(".rs") && is_bare_exception(line, text.lines().skip(number)) {
            complain("an exception from a lint needs its reason: add `reason = \"…\"`".into());
        }
    }
    complaints
}

/// Holds the marks that it looks for.
const THIS_FILE: &str = "xtask/src/tidy.rs";

/// Whether an `allow` or `expect` attribute begins on this line and ends without a reason.
fn is_bare_exception<'a>(line: &str, from_here: impl Iterator<Item = &'a str>) -> bool {
    let line = line.trim_start();
    let begins = ["allow(", "expect("]
        .iter()
        .any(|word| line.starts_with(&format!("#[{word}")) || line.starts_with(&format!("#![{word}")));
    if !begins {
        return false;
    }
    let mut attribute = String::new();
    for line in from_here {
        attribute.push_str(line);
        if line.contains(")]") {
            break;
        }
    }
    !attribute.contains("reason")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_know_only_what_they_may() {
        fn check(name: &str, need: &str, dev: bool, expect: &[&str]) {
            let it = Crate { name: name.into(), manifest: PathBuf::new(), needs: vec![(need.into(), dev)] };
            assert_eq!(check_direction(&[it]), expect, "{name} -> {need}");
        }
        check("kvmetry", "telemetry", false, &[]);
        check("kvmetry", "xtask", true, &[]);
        check("kvmetry", "xtask", false, &["crate kvmetry must not depend on xtask"]);
        check("xtask", "libvirt-rpc", false, &[]);
        check("store", "telemetry", false, &[]);
        check("store", "libvirt-rpc", false, &["crate store must not depend on libvirt-rpc"]);
        check("telemetry", "libvirt-rpc", true, &["crate telemetry must not depend on libvirt-rpc"]);
        check("libvirt-rpc", "telemetry", false, &["crate libvirt-rpc must not depend on telemetry"]);
        check(
            "new",
            "x",
            false,
            &["crate new has no place in the order of crates: name it in xtask's DIRECTION"],
        );
    }

    #[test]
    fn metadata_is_read() {
        let metadata = serde_json::json!({
            "workspace_members": ["a 1", "b 1"],
            "packages": [
                { "id": "a 1", "name": "a", "manifest_path": "a/Cargo.toml", "dependencies": [
                    { "name": "b", "kind": null }, { "name": "b", "kind": "dev" }, { "name": "serde", "kind": null } ] },
                { "id": "b 1", "name": "b", "manifest_path": "b/Cargo.toml", "dependencies": [] },
                { "id": "serde 1", "name": "serde", "manifest_path": "s/Cargo.toml", "dependencies": [] },
            ],
        });
        let (crates, packages) = read_metadata(&metadata);
        assert_eq!(packages, ["a", "b", "serde"]);
        assert_eq!(crates.len(), 2);
        assert_eq!(crates[0].needs, [("b".to_owned(), false), ("b".to_owned(), true)]);
    }

    #[test]
    fn families_are_kept_out() {
        assert_eq!(check_banned(&["virtue".into(), "tokio".into()]), [""; 0]);
        assert_eq!(check_banned(&["virt-sys".into()]).len(), 1);
        assert_eq!(check_collector("kvmetry v0.1.0\ntokio v1.0.0\narrowhead v1.0.0\n"), [""; 0]);
        assert_eq!(
            check_collector("arrow-array v59.0.0\nparquet v59.0.0\ndatafusion v55.0.0 (*)\n").len(),
            3
        );
    }

    #[test]
    fn files_are_checked() {
        fn check(file: &str, text: &str, expect: &[&str]) {
            assert_eq!(check_text(file, text, &["/build/checkout/".into()]), expect, "{text}");
        }
        check("a.md", "nothing\nto see", &[]);
        check("a.md", "x\nin /build/checkout/a", &["a.md:2: names a path of one machine (/build/checkout/)"]);
        check(
            "a.md",
            concat!("/ho", "me/me"),
            &[concat!("a.md:1: names a path of one machine (/ho", "me/)")],
        );
        check("Cargo.lock", "source = \"registry+https://github.com/rust-lang/crates.io-index\"", &[]);
        let registry = "names a registry: that belongs into a developer's own cargo configuration";
        check(
            "Cargo.lock",
            "source = \"sparse+https://mirror.example/\"",
            &[&format!("Cargo.lock:1: {registry}")],
        );
        check(".cargo/config.toml", "[source.crates-io]", &[&format!(".cargo/config.toml:1: {registry}")]);
        let reason = "an exception from a lint needs its reason: add `reason = \"…\"`";
        check("a.rs", "#[allow(dead_code, reason = \"x\")]", &[]);
        check("a.rs", "  #[expect(\n    dead_code,\n    reason = \"x\"\n)]", &[]);
        check("a.rs", "#![allow(dead_code)]", &[&format!("a.rs:1: {reason}")]);
        check("a.rs", "#[expect(\n  dead_code\n)]\n// reason", &[&format!("a.rs:1: {reason}")]);
        check("a.md", "#[allow(dead_code)]", &[]);
    }

    #[test]
    fn manifests_take_the_lints() {
        assert!(check_manifest(Path::new("a"), "[package]\n[lints]\nworkspace = true\n").is_empty());
        assert_eq!(check_manifest(Path::new("a"), "[package]\nname = \"a\"\n").len(), 1);
        assert_eq!(check_manifest(Path::new("a"), "[lints]\nrust.x = \"allow\"\n").len(), 1);
    }
}
