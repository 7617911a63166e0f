//! What `virsh` prints, read, and what it complains about, explained.

use std::collections::BTreeMap;

use anyhow::anyhow;

/// A `virsh` that takes longer has met a libvirtd that hangs. A VM's first start after an upgrade, when libvirt asks
/// QEMU for its abilities, takes up to a minute on a slow machine.
pub(super) const SECONDS: &str = "180";

/// `virsh list --uuid --name`: `UUID NAME` a line.
pub(super) fn parse_list(text: &str) -> Vec<(String, String)> {
    const UUID: usize = 36;
    text.lines()
        .filter(|line| line.is_char_boundary(UUID) && line.len() > UUID)
        .map(|line| (line[..UUID].to_owned(), line[UUID..].trim_start_matches(' ').to_owned()))
        .collect()
}

/// `virsh domstats`: by domain name, then by key.
///
/// ```text
/// Domain: 'NAME'
///   KEY=VALUE
/// ```
pub(super) fn parse_domstats(text: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    let mut current: Option<&mut BTreeMap<String, String>> = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("Domain: '").and_then(|it| it.strip_suffix('\'')) {
            current = Some(all.entry(name.to_owned()).or_default());
        } else if let (Some(stats), Some((key, value))) =
            (current.as_mut(), line.trim_start().split_once('='))
        {
            stats.insert(key.to_owned(), value.to_owned());
        }
    }
    all
}

/// libvirt's state codes (virDomainState).
pub(super) fn state_name(code: u64) -> &'static str {
    match code {
        1 => "running",
        2 => "blocked",
        3 => "paused",
        4 => "shutting down",
        5 => "shut off",
        6 => "crashed",
        7 => "suspended",
        _ => "unknown",
    }
}

pub(super) fn explain(complaint: &str, args: &[&str], uri: &str) -> anyhow::Error {
    let complaint = complaint.trim_start_matches("timeout failed: ");
    let command = args.first().unwrap_or(&"");
    if complaint.contains("virsh") && complaint.contains("No such file or directory") {
        anyhow!("`virsh` is not installed: run scripts/install-deps.sh")
    } else if complaint.contains("failed to connect to the hypervisor") {
        anyhow!("no libvirt at {uri}: start libvirtd, or run scripts/install-deps.sh ({complaint})")
    } else if complaint == "exit status: 124" {
        anyhow!("virsh {command} took longer than {SECONDS} s: libvirtd hangs")
    } else {
        anyhow!("virsh {command}: {complaint}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        fn check(text: &str, expect: &[(&str, &str)]) {
            let got = parse_list(text);
            let got: Vec<_> = got.iter().map(|(uuid, name)| (uuid.as_str(), name.as_str())).collect();
            assert_eq!(got, expect);
        }
        let uuid = "6b766d6c-6162-8123-a456-0123456789ab";
        check("", &[]);
        check("\n\n", &[]);
        check(&format!("{uuid} plain\n"), &[(uuid, "plain")]);
        check(&format!("{uuid} db,prod=1 \"ü\"\n\n"), &[(uuid, "db,prod=1 \"ü\"")]);
    }

    #[test]
    fn statistics_are_read() {
        let all = parse_domstats(
            "Domain: 'it's 'x''\n  state.state=1\n  net.0.name=a=b\n\nDomain: 'y'\n  state.state=5\n\n",
        );
        assert_eq!(all.keys().map(String::as_str).collect::<Vec<_>>(), ["it's 'x'", "y"]);
        assert_eq!(all["it's 'x'"]["net.0.name"], "a=b");
        assert_eq!(all["y"]["state.state"], "5");
    }

    #[test]
    fn complaints_say_what_to_do() {
        fn check(complaint: &str, expect: &str) {
            assert_eq!(explain(complaint, &["start", "x"], "qemu:///system").to_string(), expect);
        }
        check(
            "timeout failed: timeout: failed to run command 'virsh': No such file or directory",
            "`virsh` is not installed: run scripts/install-deps.sh",
        );
        check(
            "timeout failed: failed to connect to the hypervisor; no socket",
            "no libvirt at qemu:///system: start libvirtd, or run scripts/install-deps.sh (failed to connect to the \
             hypervisor; no socket)",
        );
        check("timeout failed: exit status: 124", "virsh start took longer than 180 s: libvirtd hangs");
        check("timeout failed: Domain is already active", "virsh start: Domain is already active");
    }
}
