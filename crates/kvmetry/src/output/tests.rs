//! The worker's policy with a sink that fails as told, in paused time.

use std::sync::mpsc as blocking;

use tokio::sync::mpsc;

use super::*;
use crate::clock::SystemClock;
use crate::logging::log_of_this_thread;

const S: i64 = 1_000_000_000;
const SHUTDOWN: Duration = Duration::from_millis(1500);

/// A batch of one line, which is its number.
fn batch(number: i64) -> Batch {
    let at_ns = number * S;
    let lines = Arc::new(format!("a v={number}i {at_ns}\n").into_bytes());
    Batch { host: "kvm1".into(), at_ns, lines, line_count: 1 }
}

/// A batch of one long line.
fn large_batch(number: i64, bytes: usize) -> Batch {
    let mut lines = vec![b'a'; bytes];
    lines[bytes - 1] = b'\n';
    Batch { lines: Arc::new(lines), ..batch(number) }
}

fn outputs_of(sink: Sink) -> Outputs {
    Outputs::of(vec![("test".to_owned(), sink)], Arc::new(SystemClock))
}

/// Gives its verdicts, then only good ones, and tells the test what it was given, when. It has no thread, so
/// that it lives in the test's paused time.
pub(super) struct Scripted {
    verdicts: std::vec::IntoIter<Verdict>,
    seen: mpsc::UnboundedSender<(String, tokio::time::Instant)>,
}

impl Scripted {
    pub(super) fn deliver(&mut self, batch: &Batch) -> Verdict {
        let text = String::from_utf8(batch.lines.to_vec()).unwrap();
        let _ = self.seen.send((text, tokio::time::Instant::now()));
        self.verdicts.next().unwrap_or(Verdict::Delivered)
    }
}

fn scripted(verdicts: Vec<Verdict>) -> (Outputs, mpsc::UnboundedReceiver<(String, tokio::time::Instant)>) {
    let (seen, seen_by_test) = mpsc::unbounded_channel();
    let sink = Scripted { verdicts: verdicts.into_iter(), seen };
    (outputs_of(Sink::Scripted(sink)), seen_by_test)
}

fn retry() -> Verdict {
    Verdict::Retry { why: "told to".to_owned() }
}

#[tokio::test]
async fn batches_come_out_in_order_and_shutdown_waits_for_them() {
    let (outputs, mut seen) = scripted(Vec::new());
    for number in 0..100 {
        outputs.send(&batch(number));
    }
    let stats = outputs.shutdown(Duration::from_secs(60)).await;
    assert_eq!(
        stats,
        [OutputStats { name: "test".to_owned(), delivered_lines: 100, ..OutputStats::default() }]
    );
    for number in 0..100 {
        assert_eq!(seen.recv().await.unwrap().0.as_bytes(), batch(number).lines.as_slice());
    }
    assert!(seen.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_tried_again_after_a_growing_pause() {
    /// The verdicts, and the pauses after them in seconds without their jitter.
    async fn check(verdicts: Vec<Verdict>, pauses: &[u64]) {
        let failures = u64::try_from(verdicts.len()).unwrap();
        let (outputs, mut seen) = scripted(verdicts);
        outputs.send(&batch(1));
        outputs.send(&batch(2));
        let (first, mut before) = seen.recv().await.unwrap();
        for expect in pauses {
            let (again, at) = seen.recv().await.unwrap();
            assert_eq!(again, first, "the same batch is tried again");
            let pause = (at - before).as_secs_f64();
            let (least, most) = (*expect as f64 * 0.74, *expect as f64 * 1.26);
            assert!((least..=most).contains(&pause), "{pause} s instead of {expect} s");
            before = at;
        }
        let (second, _) = seen.recv().await.unwrap();
        assert_eq!(second.as_bytes(), batch(2).lines.as_slice());
        let stats = outputs.shutdown(Duration::from_secs(3600)).await;
        assert_eq!((stats[0].delivered_lines, stats[0].failures), (2, failures));
        assert_eq!(stats[0].trouble, None);
    }
    check((0..8).map(|_| retry()).collect(), &[1, 2, 4, 8, 16, 30, 30, 30]).await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_once_and_so_are_its_end_and_the_next_one() {
    let busy = |id: &str| Verdict::Retry { why: format!("busy (request {id})") };
    let (lines, _guard) = log_of_this_thread();
    let other = Verdict::Retry { why: "full".to_owned() };
    let verdicts = vec![
        busy("7f3a-01"),
        busy("09bc-02"),
        other,
        Verdict::Delivered,
        busy("55ef-03"),
        Verdict::Delivered,
    ];
    let deliveries = verdicts.len();
    let (outputs, mut seen) = scripted(verdicts);
    outputs.send(&batch(1));
    outputs.send(&batch(2));
    for _ in 0..deliveries {
        seen.recv().await.unwrap();
    }
    outputs.shutdown(Duration::from_secs(3600)).await;
    let told = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
    let expect = [
        r#"WARN cannot deliver, trying again: busy (request 7f3a-01) output="test" held_back=0"#,
        r#"WARN cannot deliver, trying again: full output="test" held_back=0"#,
        r#"INFO delivers again output="test" failures=3"#,
        r#"WARN cannot deliver, trying again: busy (request 55ef-03) output="test" held_back=0"#,
        r#"INFO delivers again output="test" failures=1"#,
    ];
    assert_eq!(told.lines().map(str::trim_start).collect::<Vec<_>>(), expect);
}

/// A writer that takes one batch and holds it until the sender is dropped or told.
fn stuck() -> (Outputs, blocking::Sender<()>, mpsc::UnboundedReceiver<()>) {
    let (go_on, wait) = blocking::channel::<()>();
    let (taken, taken_by_writer) = mpsc::unbounded_channel();
    let writer = file::Writer::spawn("test", move |_| {
        let _ = taken.send(());
        let _ = wait.recv();
        Verdict::Delivered
    });
    (outputs_of(Sink::Writer(writer.unwrap())), go_on, taken_by_writer)
}

#[tokio::test]
async fn a_full_queue_loses_its_oldest_batch_but_not_the_one_on_its_way() {
    let (outputs, go_on, mut taken) = stuck();
    outputs.send(&batch(0));
    taken.recv().await.unwrap();
    let quarter = MAX_QUEUED_BYTES / 4;
    for number in 1..=5 {
        outputs.send(&large_batch(number, quarter));
    }
    let stats = &outputs.stats()[0];
    assert_eq!((stats.queued_batches, stats.dropped_lines), (4, 2));
    assert!(stats.queued_bytes <= MAX_QUEUED_BYTES);
    let left: Vec<_> = outputs.queues[0].state().batches.iter().map(|batch| batch.at_ns / S).collect();
    assert_eq!(left, [0, 3, 4, 5]);
    drop(go_on);
    let stats = outputs.shutdown(Duration::from_secs(60)).await;
    assert_eq!((stats[0].delivered_lines, stats[0].dropped_lines), (4, 2));
}

#[tokio::test]
async fn small_batches_are_bounded_by_their_number() {
    let (outputs, _go_on, mut taken) = stuck();
    outputs.send(&batch(0));
    taken.recv().await.unwrap();
    for number in 0..i64::try_from(MAX_QUEUED_BATCHES).unwrap() {
        outputs.send(&batch(number));
    }
    let stats = &outputs.stats()[0];
    assert_eq!((stats.queued_batches, stats.dropped_lines), (MAX_QUEUED_BATCHES, 1));
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_a_stuck_output() {
    let (outputs, _go_on, mut taken) = stuck();
    for number in 0..3 {
        outputs.send(&batch(number));
    }
    taken.recv().await.unwrap();
    let begun = tokio::time::Instant::now();
    let stats = outputs.shutdown(SHUTDOWN).await;
    assert!(begun.elapsed() <= SHUTDOWN + Duration::from_millis(10), "{:?}", begun.elapsed());
    assert_eq!((stats[0].delivered_lines, stats[0].dropped_lines, stats[0].queued_bytes), (0, 3, 0));
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_a_pause_and_tries_once_more() {
    let (outputs, mut seen) = scripted(vec![retry(), retry(), retry()]);
    outputs.send(&batch(1));
    seen.recv().await.unwrap();
    seen.recv().await.unwrap();
    let begun = tokio::time::Instant::now();
    let stats = outputs.shutdown(Duration::from_secs(200)).await;
    assert!(begun.elapsed() < Duration::from_secs(200), "the last failure ends it");
    assert_eq!((stats[0].failures, stats[0].dropped_lines), (3, 1));
}

#[tokio::test]
async fn a_gone_reader_is_told_and_nothing_is_queued_for_it_any_more() {
    let (outputs, _seen) = scripted(vec![Verdict::Closed(Closed::ReaderGone)]);
    outputs.send(&batch(1));
    assert_eq!(outputs.closed().await, Closed::ReaderGone);
    outputs.send(&batch(2));
    assert_eq!(outputs.stats()[0].queued_batches, 1);
    let stats = outputs.shutdown(Duration::from_secs(60)).await;
    assert_eq!(stats[0].delivered_lines, 0);
}

#[tokio::test]
async fn a_file_gets_every_batch() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lines.lp");
    let targets = [LineOutput::File(path.clone())];
    let outputs = Outputs::start(&targets, Arc::new(SystemClock)).unwrap();
    assert!(!outputs.is_empty());
    for number in 1..=3 {
        outputs.send(&batch(number));
    }
    let stats = outputs.shutdown(Duration::from_secs(60)).await;
    assert_eq!(stats[0].delivered_lines, 3);
    let expect: Vec<u8> = (1..=3).flat_map(|number| batch(number).lines.to_vec()).collect();
    assert_eq!(std::fs::read(&path).unwrap(), expect);

    let nowhere = [LineOutput::File(folder.path().join("nowhere/lines.lp"))];
    let Err(error) = Outputs::start(&nowhere, Arc::new(SystemClock)) else { panic!("it started") };
    assert!(error.to_string().contains("nowhere/lines.lp: cannot be opened: No such file"), "{error}");
}
