//! Thousands of real frames, damaged: whatever comes, the decoders return, blame a byte that is there, and have shown
//! whole records only. The fuzz targets in `fuzz/` do the same without end.

use libvirt_rpc::{Malformed, decode};
use proptest::prelude::*;

use crate::captured::{
    BALLOON_CHANGE, BULK, CPU_STATS, DEVICE_ADDED, DEVICE_REMOVED, DOMAIN_INFO, ERROR, LIFECYCLE,
    MEMORY_STATS, PING,
};
use crate::daemon::{Count, HEADER};

const FRAMES: [&[u8]; 11] = [
    BULK,
    BULK,
    ERROR,
    LIFECYCLE,
    DEVICE_ADDED,
    DEVICE_REMOVED,
    BALLOON_CHANGE,
    MEMORY_STATS,
    CPU_STATS,
    DOMAIN_INFO,
    PING,
];

/// Words that have broken decoders: limits, signs, and what lies just beside them.
const WORDS: [u32; 12] =
    [0, 1, 2, 7, 8, 16_384, 16_385, 262_144, 4 << 20, 32 << 20, i32::MAX as u32, u32::MAX];

/// The events' procedures.
const EVENTS: [i32; 6] = [318, 322, 331, 333, 348, 354];

#[derive(Clone, Debug)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Word(prop::sample::Index, u32),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
    Insert(prop::sample::Index, Vec<u8>),
    Splice(prop::sample::Index, prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        4 => (at(), 1..=255_u8).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        6 => (at(), prop::sample::select(&WORDS[..])).prop_map(|(at, word)| Damage::Word(at, word)),
        1 => at().prop_map(Damage::Cut),
        1 => (at(), 1..64_usize).prop_map(|(at, len)| Damage::Remove(at, len)),
        1 => (at(), 1..64_usize).prop_map(|(at, len)| Damage::Repeat(at, len)),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..32)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => (at(), at()).prop_map(|(at, from)| Damage::Splice(at, from)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.is_empty() {
        return;
    }
    let len = bytes.len();
    match damage {
        Damage::Flip(at, bits) => bytes[at.index(len)] ^= bits,
        Damage::Word(at, word) => {
            let at = at.index(len) & !3;
            for (byte, new) in bytes[at..].iter_mut().zip(word.to_be_bytes()) {
                *byte = new;
            }
        }
        Damage::Cut(at) => bytes.truncate(at.index(len)),
        Damage::Remove(at, count) => {
            let at = at.index(len);
            bytes.drain(at..len.min(at + count));
        }
        Damage::Repeat(at, count) => {
            let at = at.index(len);
            let piece = bytes[at..len.min(at + count)].to_vec();
            bytes.splice(at..at, piece);
        }
        Damage::Insert(at, new) => {
            let at = at.index(len);
            bytes.splice(at..at, new.iter().copied());
        }
        Damage::Splice(at, from) => {
            bytes.truncate(at.index(len));
            bytes.extend(&BULK[from.index(BULK.len())..]);
        }
    }
}

/// The offset that is blamed lies in the frame, or just behind its end.
fn blame<T>(result: Result<T, Malformed>, payload: &[u8]) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(malformed) => {
            assert!(malformed.offset <= HEADER + payload.len(), "{malformed:?} of {} bytes", payload.len());
            assert!(!malformed.expected.is_empty());
            None
        }
    }
}

fn decode_everything(bytes: &[u8]) {
    if let Err(malformed) = decode::frame(bytes) {
        assert!(malformed.offset <= bytes.len(), "{malformed:?} of {} bytes", bytes.len());
    }
    // Behind a header that is refused nothing would be decoded; here all of it is.
    let payload = bytes.get(HEADER..).unwrap_or_default();
    let mut seen = Count::default();
    let records = blame(decode::bulk_reply(payload, &mut seen), payload);
    match records {
        Some(records) => assert_eq!((seen.begun, seen.ended), (records, records)),
        None => assert!(seen.ended <= seen.begun && seen.begun <= seen.ended + 1, "{seen:?}"),
    }
    // A parameter takes at least twelve bytes: nothing was shown that is not there.
    assert!(seen.params * 12 <= payload.len(), "{seen:?} of {} bytes", payload.len());
    blame(decode::error(payload), payload);
    blame(decode::domain_info(payload), payload);
    blame(decode::memory_stats(payload), payload);
    blame(decode::cpu_stats(payload), payload);
    for procedure in EVENTS {
        blame(decode::event(procedure, payload), payload);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_frames_are_refused_or_read(
        frame in prop::sample::select(&FRAMES[..]),
        damages in prop::collection::vec(damage(), 1..6),
    ) {
        let mut bytes = frame.to_vec();
        damages.iter().for_each(|damage| apply(&mut bytes, damage));
        decode_everything(&bytes);
    }
}

/// Every word of the real frames replaced by each of the telling values, one at a time.
#[test]
fn every_word_may_lie() {
    for frame in FRAMES {
        for at in (0..frame.len()).step_by(4) {
            for word in WORDS {
                let mut bytes = frame.to_vec();
                bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
                decode_everything(&bytes);
            }
        }
    }
}
