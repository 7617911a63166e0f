//! Given-up calls across connections: closing a socket does not free the daemon's worker.

use libvirt_rpc::{Budget, Connection, DaemonProcess, Error, MONITOR_CALLS, ORPHAN_RELEASE};

use crate::daemon::{ALL_DOMAIN_STATS, AUTH_LIST, Client, Daemon, Xdr, after, bulk, options};

/// A budget whose places are all held by calls of a connection that is gone.
async fn orphaned(daemon: &Daemon) -> Budget {
    let budget = Budget::new(MONITOR_CALLS);
    let (connection, mut client) = daemon.open(&budget).await;
    for _ in 0..MONITOR_CALLS {
        let (result, _) = tokio::join!(bulk(&connection, after(2)), client.call(ALL_DOMAIN_STATS));
        let Err(Error::Deadline { late, .. }) = result else { panic!("{result:?}") };
        assert!(!late.is_over());
    }
    drop(connection);
    assert_eq!(budget.abandoned(), MONITOR_CALLS);
    budget
}

/// One bulk call, sent and answered.
async fn answered(connection: &libvirt_rpc::Connection, client: &mut Client) {
    let (result, ()) = tokio::join!(bulk(connection, after(2)), async {
        let call = client.call(ALL_DOMAIN_STATS).await;
        client.reply(&call, Xdr::default().u32(0)).await;
    });
    assert_eq!(result.expect("a place is free"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_reconnect_to_the_same_process_frees_nothing() {
    let daemon = Daemon::named();
    let budget = orphaned(&daemon).await;
    let (connection, mut client) = daemon.open(&budget).await;
    let process = connection.daemon_process().expect("named as a daemon is");
    assert_eq!(process.pid, std::process::id() as i32);
    assert!(budget.is_exhausted());
    let refused = bulk(&connection, after(2)).await;
    assert!(matches!(refused, Err(Error::Budget { outstanding: MONITOR_CALLS, .. })), "{refused:?}");
    client.hostname(&connection).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_process_holds_none_of_the_old_ones_calls() {
    let daemon = Daemon::named();
    let budget = orphaned(&daemon).await;
    assert_eq!(budget.abandoned(), MONITOR_CALLS);
    // As if the next connection found another process in this one's place.
    let another = DaemonProcess { pid: std::process::id() as i32, started_ticks: 0 };
    assert_eq!(budget.daemon_is(Some(another)), MONITOR_CALLS);
    let (connection, mut client) = daemon.open(&budget).await;
    assert_eq!(budget.abandoned(), 0);
    answered(&connection, &mut client).await;
}

/// A daemon that closes the socket of a client, or is cut off from it, still hangs on the call.
#[tokio::test(start_paused = true)]
async fn a_call_in_flight_when_the_socket_dies_keeps_its_place() {
    let daemon = Daemon::named();
    let budget = Budget::new(MONITOR_CALLS);
    let (connection, mut client) = daemon.open(&budget).await;
    let (result, ()) = tokio::join!(bulk(&connection, after(60)), async {
        client.call(ALL_DOMAIN_STATS).await;
        drop(client);
    });
    assert!(result.as_ref().is_err_and(Error::is_connection_lost), "{result:?}");
    assert_eq!(budget.abandoned(), 1);
    // The same daemon: it is still at it.
    let (_connection, _client) = daemon.open(&budget).await;
    assert_eq!(budget.abandoned(), 1);
}

/// systemd holds the socket while one daemon ends and the next begins: who connects in between is told of the old one.
#[tokio::test]
async fn the_process_is_the_one_that_answers() {
    for ends in [false, true] {
        let (daemon, mut process) = Daemon::listened_to_by_another().await;
        let pid = process.id().map(|pid| pid as i32);
        let uri = daemon.uri();
        let budget = Budget::new(MONITOR_CALLS);
        let (connection, _client) = tokio::join!(Connection::open(&uri, options(&budget)), async {
            let mut client = daemon.accept().await;
            let first = client.call(AUTH_LIST).await;
            if ends {
                process.kill().await.expect("ours");
            }
            client.let_in(&first, 1).await;
            client
        });
        let known = connection.expect("an open connection").daemon_process().map(|process| process.pid);
        assert_eq!(known, pid.filter(|_| !ends));
    }
}

#[tokio::test(start_paused = true)]
async fn every_ten_minutes_one_orphan_goes() {
    let daemon = Daemon::start();
    let budget = orphaned(&daemon).await;
    assert_eq!(budget.release_due(), 0);
    tokio::time::advance(ORPHAN_RELEASE).await;
    assert_eq!(budget.release_due(), 1);
    assert_eq!(budget.release_due(), 0);
    assert_eq!(budget.abandoned(), MONITOR_CALLS - 1);
    let (connection, mut client) = daemon.open(&budget).await;
    answered(&connection, &mut client).await;
    // The one place: given up again, and then there is none.
    let (result, call) = tokio::join!(bulk(&connection, after(2)), client.call(ALL_DOMAIN_STATS));
    assert!(matches!(result, Err(Error::Deadline { .. })), "{result:?}");
    assert!(matches!(bulk(&connection, after(2)).await, Err(Error::Budget { .. })));
    // A reply frees its own place, the orphans stay.
    client.reply(&call, Xdr::default().u32(0)).await;
    client.hostname(&connection).await;
    assert_eq!(budget.abandoned(), MONITOR_CALLS - 1);
}
