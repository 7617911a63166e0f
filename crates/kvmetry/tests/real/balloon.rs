//! The memory rate, where guests report more often, less often, as often as we read, and never.
//!
//! The lab's guest is made so that its used memory (available - usable) grows by a known step with each report and
//! falls back after some: `balloon_answer` in `xtask/lab/guest.c`.

use std::time::Duration;

use crate::harness::{Kvmetry, Point, URI, lab_with, start_vms};

/// Growth of the guest's used memory from one report to the next, KiB.
const STEP_KIB: f64 = 64.0;
/// After this many reports it is back where it began.
const STEPS: f64 = 16.0;

/// Time between two readings, seconds.
const INTERVAL: u32 = 5;
/// Cycles that are looked at, beside the first.
const CYCLES: usize = 8;

/// Whether a rate is right between two readings `elapsed` seconds apart of a guest that reports every `period` seconds:
/// it is that of as many reports as fit in between. Dates are cut to whole seconds, and a monitor may be late by as
/// much, so the divisor may be off by one second.
fn is_right(rate: f64, period: u32, elapsed: f64) -> bool {
    let fit = |seconds: f64| (seconds / f64::from(period)).max(1.0);
    let reports = fit(elapsed - 1.0).floor() as u32..=fit(elapsed + 1.0).ceil() as u32;
    reports.into_iter().any(|reports| {
        let exact = reports * period;
        (exact.saturating_sub(1).max(1)..=exact + 1).any(|seconds| {
            [0.0, STEPS].into_iter().any(|fallen_back| {
                let expect = STEP_KIB * (f64::from(reports) - fallen_back) / f64::from(seconds);
                (rate - expect).abs() < 1e-6
            })
        })
    })
}

#[test]
fn the_judge_of_rates_knows_right_from_wrong() {
    let check = |rate: f64, period: u32, expect: bool| {
        assert_eq!(is_right(rate, period, f64::from(INTERVAL)), expect, "{rate} {period}");
    };
    check(64.0, 1, true);
    check(12.8, 5, true);
    check(6.4, 10, true);
    // Twice the change in the time of one; nothing new in the time of one; a report's change by our interval.
    check(128.0, 1, false);
    check(25.6, 5, false);
    check(12.8, 10, false);
    check(0.0, 5, false);
    check(0.0, 10, false);
    // Back at the beginning.
    check((64.0 - 1024.0) / 5.0, 5, true);
    check(2.0 * (64.0 - 1024.0) / 5.0, 5, false);
}

#[test]
fn the_memory_rate_is_right_or_absent_whatever_the_balloon_period() {
    let lab = lab_with("balloon", INTERVAL);
    let periods = [0, 1, 5, 10];
    let vms = periods.map(|period| {
        let mut vm = lab.vm(&format!("balloon period {period}")).unwrap();
        vm.balloon_period = period;
        vm
    });
    start_vms(&lab, &vms);
    let mut kvmetry = Kvmetry::run_as(&["--uri", URI, "--interval", "5s"]);
    let patience = Duration::from_secs(u64::from(INTERVAL) * (CYCLES as u64 + 4));
    let cycles = kvmetry.wait_for("the cycles", patience, |seen| {
        let cycles = seen.cycles();
        (cycles.len() > CYCLES).then_some(cycles)
    });
    kvmetry.stop("TERM");

    let elapsed = |now: usize| (cycles[now].time_ns - cycles[now - 1].time_ns) as f64 / 1e9;
    for (vm, period) in vms.iter().zip(periods) {
        let used = |cycle: usize| -> f64 {
            let totals: &Point = cycles[cycle].totals(vm).expect("a line in every cycle");
            (totals.int("memavailable").unwrap() - totals.int("memusable").unwrap()) as f64
        };
        let features: Vec<_> = (0..cycles.len()).map(|it| cycles[it].line("vm_features", vm)).collect();
        let rates: Vec<_> =
            features.iter().map(|it| it.and_then(|it| it.float("memory_rate_kb_per_sec"))).collect();
        assert_eq!(rates[0], None, "a first reading has no rate");
        if period == 0 {
            // The guest's first and only word is not repeated as if it were new; later the process's memory is
            // followed, whose change is what the lines themselves show.
            for (now, rate) in rates.iter().enumerate().skip(1) {
                let rss = |cycle: usize| cycles[cycle].totals(vm).unwrap().int("memrss").unwrap() as f64;
                let expect = (rss(now) - rss(now - 1)) / elapsed(now);
                if let Some(rate) = rate {
                    assert!(
                        (rate - expect).abs() <= expect.abs() * 0.1 + 1.0,
                        "{rate}, but rss says {expect}"
                    );
                }
            }
            continue;
        }
        for (now, rate) in rates.iter().enumerate().skip(1) {
            let changed = used(now) != used(now - 1);
            match *rate {
                Some(rate) => {
                    assert!(
                        is_right(rate, period, elapsed(now)),
                        "period {period}: {rate} KiB/s in cycle {now}: {rates:?}"
                    );
                    assert!(
                        changed,
                        "period {period}: a rate, though the guest said nothing new in cycle {now}"
                    );
                }
                // Absent where the guest has said nothing new.
                None => {
                    assert!(!changed, "period {period}: no rate in cycle {now}, though the guest reported")
                }
            }
        }
        let there = rates.iter().flatten().count();
        let least = match period {
            10 => CYCLES / 2 - 1,
            _ => CYCLES - 2,
        };
        assert!(there >= least, "period {period}: only {there} rates in {} cycles", cycles.len());
    }
}
