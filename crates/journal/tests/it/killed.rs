//! A real process, killed at any moment while it appends: what it said was acknowledged is there.
//!
//! The child is this test's own executable. `KVMETRY_KILLS` sets how often one is killed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use disk::RealDisk;
use journal::{Entry, Journal, Limits, Seq};

const CHILD: &str = "KVMETRY_TEST_JOURNAL_CHILD";
const LIMITS: Limits = Limits { max_bytes: 16 << 20, max_age: Duration::from_secs(3600) };

fn open(dir: &Path) -> Journal {
    let (journal, opened) = Journal::open(Arc::new(RealDisk), dir, LIMITS, &["r"]).unwrap();
    assert_eq!(opened.damage, Vec::<String>::new());
    journal
}

/// What entry number so-and-so is: so a parent that knows nothing else can check it.
fn entry(seq: Seq) -> Entry {
    let mut rng = fastrand::Rng::with_seed(seq);
    let mut payload = vec![0; rng.usize(..20_000)];
    rng.fill(&mut payload);
    Entry { payload, lines: rng.u32(..100), span: (0, 1) }
}

/// The child: appends, says what is acknowledged, keeps house, until it is killed.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let journal = open(Path::new(&dir));
    let mut out = std::io::stdout().lock();
    let mut next = journal.stats().last + 1;
    loop {
        let count = next % 3 + 1;
        let entries: Vec<Entry> = (next..next + count).map(entry).collect();
        next = journal.append(&entries, &[("last", &(next + count - 1).to_le_bytes())], 0).unwrap().last + 1;
        writeln!(out, "acknowledged {}", next - 1).unwrap();
        if next.is_multiple_of(7) {
            journal.advance("r", next.saturating_sub(50));
            journal.maintain(0).unwrap();
            writeln!(out, "cursor {}", journal.cursor("r")).unwrap();
        }
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let kills: u32 = std::env::var("KVMETRY_KILLS").map_or(10, |it| it.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut rng = fastrand::Rng::with_seed(u64::from(kills));
    let (mut acknowledged, mut cursor) = (0, 0);
    for _ in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["killed::child", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        // So many acknowledgements, then so many microseconds into the next append, which takes about that long.
        let mut left = rng.u32(1..60);
        let spin = Duration::from_micros(rng.u64(..3000));
        let mut hear = |line: String, acknowledged: &mut Seq, cursor: &mut Seq| {
            match line.rsplit_once("acknowledged ") {
                Some((_, seq)) => *acknowledged = seq.parse().unwrap(),
                None => {
                    if let Some(seq) = line.strip_prefix("cursor ") {
                        *cursor = seq.parse().unwrap();
                    }
                    return;
                }
            }
            left = left.saturating_sub(1);
            if left == 0 {
                let start = Instant::now();
                while start.elapsed() < spin {
                    std::hint::spin_loop();
                }
                child.kill().unwrap();
            }
        };
        // Also what it still said before it died; a line that was cut counts not.
        for line in lines.by_ref() {
            hear(line, &mut acknowledged, &mut cursor);
        }
        assert!(!child.wait().unwrap().success());

        let journal = open(dir.path());
        let stats = journal.stats();
        assert!(stats.last >= acknowledged, "{acknowledged} was acknowledged, {} is there", stats.last);
        assert!(stats.last <= acknowledged + 3, "one append may have come that was not acknowledged");
        assert!(journal.cursor("r") >= cursor);
        let mut after = stats.first - 1;
        assert!(after <= journal.cursor("r"));
        while after < stats.last {
            let read = journal.read(after, 1 << 20).unwrap();
            assert_eq!(read.damaged, []);
            for (seq, it) in read.entries {
                after += 1;
                assert_eq!(seq, after);
                assert!(it == entry(seq), "entry {seq}");
            }
        }
        let last = journal.state("last").unwrap().unwrap();
        assert_eq!(last, stats.last.to_le_bytes(), "states come with their entries, or not");
        acknowledged = stats.last;
    }
    assert!(acknowledged > Seq::from(kills));
}
