//! What the calls put on the wire, and what they make of the answers, where no other test looks at it. The layouts are
//! those of `remote_protocol.x`.

use libvirt_rpc::{NodeInfo, Version};

use crate::daemon::{Client, Xdr, domain, open};

const GET_VERSION: u32 = 4;
const NODE_GET_INFO: u32 = 6;
const NODE_GET_CPU_STATS: u32 = 227;
const NODE_GET_MEMORY_STATS: u32 = 228;
const GET_DISK_ERRORS: u32 = 263;

/// One call of this procedure with these arguments, and its answer.
async fn answer(client: &mut Client, procedure: u32, args: Xdr, payload: Xdr) {
    let call = client.call(procedure).await;
    assert_eq!(call.payload, args.0, "arguments of procedure {procedure}");
    client.reply(&call, payload).await;
}

#[tokio::test(start_paused = true)]
async fn the_hypervisors_version() {
    let (connection, mut client) = open().await;
    let script = answer(&mut client, GET_VERSION, Xdr::default(), Xdr::default().u64(7_002_022));
    let (version, ()) = tokio::join!(connection.hypervisor_version(), script);
    let version = version.expect("an answer");
    assert_eq!((version, version.to_string().as_str()), (Version(7_002_022), "7.2.22"));
}

#[tokio::test(start_paused = true)]
async fn disks_in_error() {
    let (connection, mut client) = open().await;
    let asked = domain(3);
    for (payload, expect) in [
        (Xdr::default().u32(0).u32(0), vec![]),
        (
            Xdr::default().u32(2).string("vda").u32(2).string("vdb").u32(1).u32(2),
            vec![("vda".to_owned(), 2), ("vdb".to_owned(), 1)],
        ),
    ] {
        let args = Xdr::default().string("guest-3").bytes(&[3; 16]).u32(3).u32(256).u32(0);
        let script = answer(&mut client, GET_DISK_ERRORS, args, payload);
        let (errors, ()) = tokio::join!(connection.disk_errors(&asked), script);
        assert_eq!(errors.expect("an answer"), expect);
    }
}

/// `char model[32]`, each character a whole integer.
fn model(name: &str) -> Xdr {
    let chars = name.bytes().chain(std::iter::repeat(0)).take(32);
    chars.fold(Xdr::default(), |xdr, c| xdr.u32(u32::from(c)))
}

#[tokio::test(start_paused = true)]
async fn the_hosts_hardware() {
    let (connection, mut client) = open().await;
    // A name that fills its field has no end in it.
    for name in ["x86_64", "0123456789abcdef0123456789abcdef"] {
        let payload = model(name).u64(16_310_000).u32(8).u32(2_400).u32(1).u32(2).u32(4).u32(1);
        let script = answer(&mut client, NODE_GET_INFO, Xdr::default(), payload);
        let (info, ()) = tokio::join!(connection.node_info(), script);
        let expect = NodeInfo {
            model: name.to_owned(),
            memory_kib: 16_310_000,
            cpus: 8,
            mhz: 2_400,
            topology: [1, 2, 4, 1],
        };
        assert_eq!(info.expect("an answer"), expect);
    }
}

/// All CPUs and all cells are -1; how many statistics there are is asked for first, with 0.
#[tokio::test(start_paused = true)]
async fn the_hosts_times_and_memory() {
    const ALL: u32 = u32::MAX;
    let (connection, mut client) = open().await;
    let (times, ()) = tokio::join!(connection.node_cpu_stats(), async {
        let count = Xdr::default().u32(0).u32(2);
        answer(&mut client, NODE_GET_CPU_STATS, Xdr::default().u32(ALL).u32(0).u32(0), count).await;
        let both = Xdr::default().u32(2).string("kernel").u64(7).string("idle").u64(u64::MAX).u32(2);
        answer(&mut client, NODE_GET_CPU_STATS, Xdr::default().u32(ALL).u32(2).u32(0), both).await;
    });
    assert_eq!(times.expect("an answer"), [("kernel".to_owned(), 7), ("idle".to_owned(), u64::MAX)]);
    let (memory, ()) = tokio::join!(connection.node_memory_stats(), async {
        let count = Xdr::default().u32(0).u32(1);
        answer(&mut client, NODE_GET_MEMORY_STATS, Xdr::default().u32(0).u32(ALL).u32(0), count).await;
        let one = Xdr::default().u32(1).string("total").u64(16_310_000).u32(1);
        answer(&mut client, NODE_GET_MEMORY_STATS, Xdr::default().u32(1).u32(ALL).u32(0), one).await;
    });
    assert_eq!(memory.expect("an answer"), [("total".to_owned(), 16_310_000)]);
}
