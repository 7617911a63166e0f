//! What a domain's XML tells a collector: the names of its devices and how often its balloon reports.
//!
//! Bulk statistics name the devices themselves; the older calls take the names from here. Reading the XML costs
//! the daemon some 0.3 ms a domain, so it is cached per domain, for `device_cache_ttl`, and dropped at once when
//! libvirt reports a device added or removed or the domain restarted.

use std::time::Duration;

/// Elements and attributes of one domain's XML. A domain with 500 disks has some 10,000.
const MAX_NODES: u32 = 200_000;
/// Devices of one kind that are read one by one; a domain with more has its first ones read.
const MAX_DEVICES: usize = 512;

/// What is kept of a domain's XML.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DomainFacts {
    /// Host-side names of the network interfaces that have one, e.g. `vnet0`. User-mode NICs have none, and no
    /// counters either.
    pub(crate) nics: Vec<String>,
    /// Targets of the disks, CD-ROMs and floppies, e.g. `vda`.
    pub(crate) disks: Vec<String>,
    /// Whether the domain has a balloon at all.
    pub(crate) has_balloon: bool,
    /// How often the balloon reports the guest's memory; `None` or zero: never.
    pub(crate) balloon_period: Option<Duration>,
}

impl DomainFacts {
    /// Reads the live XML of `virDomainGetXMLDesc`.
    ///
    /// # Errors
    /// Where it is no XML; the message says at which line.
    pub(crate) fn parse(xml: &str) -> Result<Self, roxmltree::Error> {
        let options =
            roxmltree::ParsingOptions { nodes_limit: MAX_NODES, ..roxmltree::ParsingOptions::default() };
        let document = roxmltree::Document::parse_with_options(xml, options)?;
        let mut facts = Self::default();
        let child = |node: roxmltree::Node<'_, '_>, name: &str, attribute: &str| {
            let child = node.children().find(|n| n.has_tag_name(name))?;
            child.attribute(attribute).map(str::to_owned)
        };
        let Some(devices) = document.root_element().children().find(|n| n.has_tag_name("devices")) else {
            return Ok(facts);
        };
        for device in devices.children() {
            match device.tag_name().name() {
                "interface" if facts.nics.len() < MAX_DEVICES => {
                    facts.nics.extend(child(device, "target", "dev"))
                }
                "disk" if facts.disks.len() < MAX_DEVICES => {
                    facts.disks.extend(child(device, "target", "dev"))
                }
                "memballoon" => {
                    facts.has_balloon = device.attribute("model") != Some("none");
                    facts.balloon_period = child(device, "stats", "period")
                        .and_then(|s| s.parse().ok())
                        .map(Duration::from_secs);
                }
                _ => {}
            }
        }
        Ok(facts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_and_the_balloon_period_are_found() {
        let check = |devices: &str, expect: DomainFacts| {
            let xml =
                format!("<domain type='kvm' id='3'><name>a</name><devices>{devices}</devices></domain>");
            assert_eq!(DomainFacts::parse(&xml).expect("well-formed"), expect, "{devices}");
        };
        let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        check("", DomainFacts::default());
        check(
            "<interface type='bridge'><target dev='vnet0'/></interface><interface type='user'><mac address='x'/>
             </interface><interface type='ethernet'><source/><target dev='tap &amp;1' managed='no'/></interface>",
            DomainFacts { nics: names(&["vnet0", "tap &1"]), ..DomainFacts::default() },
        );
        check(
            "<disk type='file' device='disk'><source file='/a'/><target dev='vda' bus='virtio'/></disk>
             <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
             <memballoon model='virtio'><stats period='5'/></memballoon>",
            DomainFacts {
                disks: names(&["vda", "sda"]),
                has_balloon: true,
                balloon_period: Some(Duration::from_secs(5)),
                ..DomainFacts::default()
            },
        );
        check("<memballoon model='virtio'/>", DomainFacts { has_balloon: true, ..DomainFacts::default() });
        check("<memballoon model='none'/>", DomainFacts::default());
        assert!(DomainFacts::parse("<domain><devices>").is_err());
    }
}
