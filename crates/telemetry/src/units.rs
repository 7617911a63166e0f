//! Units and identities as types, so that KiB never meet bytes and a domain is never known by a number that is
//! given to the next one.
//!
//! Every quantity is an unsigned 64-bit number, as libvirt gives it; `From` goes both ways.

use std::fmt;
use std::str::FromStr;

macro_rules! quantity {
    ($($(#[$doc:meta])+ $name:ident;)*) => {$(
        $(#[$doc])+
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(pub u64);

        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }

        impl From<$name> for u64 {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    )*};
}

quantity! {
    /// Memory in KiB (1024 bytes), libvirt's unit for guest memory.
    Kib;
    /// Nanoseconds of CPU time.
    Nanos;
    /// Bytes transferred.
    Bytes;
    /// A number of things: packets, requests, faults, vCPUs.
    Count;
    /// Whole seconds since 1970, by the hypervisor's clock.
    WallSeconds;
    /// A domain state, 0 to 7 (virDomainState): 0 no state, 1 running, 2 blocked, 3 paused, 4 shutting down,
    /// 5 shut off, 6 crashed, 7 suspended by guest.
    StateCode;
}

/// libvirt's id of a live domain. It changes when the domain restarts; -1 says that the domain is not live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(pub i32);

impl DomainId {
    /// The id of a domain that is not running.
    pub const NONE: Self = Self(-1);

    /// Whether a domain with this id is running (or paused, …), and not shut off.
    pub fn is_live(self) -> bool {
        self.0 >= 0
    }
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A domain's UUID: what a domain is known by. Shown in lower case with hyphens (RFC 9562, section 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(pub [u8; 16]);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// A text that is not a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAUuid;

impl fmt::Display for NotAUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a uuid: 32 hex digits are expected, hyphens between them are allowed")
    }
}

impl std::error::Error for NotAUuid {}

impl FromStr for Uuid {
    type Err = NotAUuid;

    /// Takes 32 hex digits of either case; hyphens are skipped wherever they stand, as libvirt does (virUUIDParse).
    ///
    /// # Errors
    /// [`NotAUuid`] for anything else.
    fn from_str(text: &str) -> Result<Self, NotAUuid> {
        let mut bytes = [0; 16];
        let mut digits = 0;
        for c in text.chars().filter(|c| *c != '-') {
            let value = c.to_digit(16).ok_or(NotAUuid)? as u8;
            *bytes.get_mut(digits / 2).ok_or(NotAUuid)? |= if digits % 2 == 0 { value << 4 } else { value };
            digits += 1;
        }
        if digits == 32 { Ok(Self(bytes)) } else { Err(NotAUuid) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_read_in_either_case_and_shown_in_lower() {
        let check = |text: &str, expect: Result<&str, NotAUuid>| {
            let got = text.parse::<Uuid>().map(|uuid| uuid.to_string());
            assert_eq!(got, expect.map(str::to_owned), "{text}");
        };
        check("0123ABCD-ef01-2345-6789-abcdef012345", Ok("0123abcd-ef01-2345-6789-abcdef012345"));
        check("0123abcdef0123456789abcdef012345", Ok("0123abcd-ef01-2345-6789-abcdef012345"));
        check("0123abcd-ef01-2345-6789-abcdef01234", Err(NotAUuid));
        check("0123abcd-ef01-2345-6789-abcdef0123456", Err(NotAUuid));
        check("0123abcd-ef01-2345-6789-abcdef01234g", Err(NotAUuid));
        check("", Err(NotAUuid));
    }
}
