//! A libvirt daemon that does what the test says, frame by frame. It knows the wire format by itself, so that a
//! mistake in the client is not made twice.

use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::Duration;

use libvirt_rpc::{
    Access, Budget, Connection, DEFAULT_MAX_ABANDONED, Domain, DomainRef, Error, Groups, Options, StatsFlags,
    StatsVisitor, Uri, Value,
};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixSocket};
use tokio::process::{Child, Command};
use tokio::time::Instant;

pub(crate) const HEADER: usize = 28;
pub(crate) const REMOTE: u32 = 0x2000_8086;
pub(crate) const KEEPALIVE: u32 = 0x6b65_6570;

pub(crate) const CALL: u32 = 0;
pub(crate) const REPLY: u32 = 1;
pub(crate) const MESSAGE: u32 = 2;

pub(crate) const CONNECT_OPEN: u32 = 1;
pub(crate) const CONNECT_CLOSE: u32 = 2;
pub(crate) const GET_HOSTNAME: u32 = 59;
pub(crate) const SUPPORTS_FEATURE: u32 = 60;
pub(crate) const AUTH_LIST: u32 = 66;
pub(crate) const AUTH_POLKIT: u32 = 70;
pub(crate) const MEMORY_STATS: u32 = 159;
pub(crate) const ALL_DOMAIN_STATS: u32 = 344;

pub(crate) const PING: u32 = 1;
pub(crate) const PONG: u32 = 2;

/// Payload being written.
#[derive(Default)]
pub(crate) struct Xdr(pub(crate) Vec<u8>);

impl Xdr {
    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub(crate) fn string(self, text: &str) -> Self {
        self.opaque(text.as_bytes())
    }

    pub(crate) fn opaque(self, bytes: &[u8]) -> Self {
        let mut xdr = self.u32(bytes.len() as u32).bytes(bytes);
        while !xdr.0.len().is_multiple_of(4) {
            xdr.0.push(0);
        }
        xdr
    }
}

/// One frame, as it came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) program: u32,
    pub(crate) procedure: u32,
    pub(crate) kind: u32,
    pub(crate) serial: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// A reply to this call.
    pub(crate) fn reply(&self, payload: Xdr) -> Vec<u8> {
        frame(self.program, self.procedure, REPLY, self.serial, 0, &payload.0)
    }
}

pub(crate) fn frame(
    program: u32,
    procedure: u32,
    kind: u32,
    serial: u32,
    status: u32,
    payload: &[u8],
) -> Vec<u8> {
    let length = (HEADER + payload.len()) as u32;
    let head =
        Xdr::default().u32(length).u32(program).u32(1).u32(procedure).u32(kind).u32(serial).u32(status);
    head.bytes(payload).0
}

/// The listening socket.
pub(crate) struct Daemon {
    dir: TempDir,
    listener: UnixListener,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(dir.path().join("sock")).expect("a socket in it");
        Self { dir, listener }
    }

    /// One that looks like libvirt's to who asks the kernel for its name: then it is known as a process.
    pub(crate) fn named() -> Self {
        std::fs::write("/proc/self/comm", "virtqemud").expect("a process may name itself");
        Self::start()
    }

    /// One whose socket another process, which looks like libvirt's, has called listen(2) on.
    pub(crate) async fn listened_to_by_another() -> (Self, Child) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = UnixSocket::new_stream().expect("a socket");
        socket.bind(dir.path().join("sock")).expect("its name");
        let fd = socket.as_fd().try_clone_to_owned().expect("a second descriptor");
        let mut other = Command::new("perl")
            .args(["-e", "$0 = 'libvirtd'; listen(STDIN, 9) or die; $| = 1; print 1; sleep 600"])
            .stdin(fd)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("perl runs");
        other.stdout.take().expect("it is piped").read_u8().await.expect("it listens");
        let fd = socket.as_fd().try_clone_to_owned().expect("a third descriptor");
        let listener = UnixListener::from_std(fd.into()).expect("it is one by now");
        (Self { dir, listener }, other)
    }

    pub(crate) fn uri(&self) -> Uri {
        let uri = format!("qemu+unix:///system?socket={}", self.dir.path().join("sock").display());
        uri.parse().expect("a good URI")
    }

    pub(crate) async fn accept(&self) -> Client {
        let (stream, _) = self.listener.accept().await.expect("a client");
        Client::over(stream)
    }

    /// A client that has connected, and its connection's other end.
    pub(crate) async fn open(&self, budget: &Budget) -> (Connection, Client) {
        let uri = self.uri();
        let script = async {
            let mut client = self.accept().await;
            client.welcome(1).await;
            client
        };
        let (connection, client) = tokio::join!(Connection::open(&uri, options(budget)), script);
        (connection.expect("an open connection"), client)
    }
}

/// Deadlines long enough to be recognised, in paused time.
pub(crate) fn options(budget: &Budget) -> Options {
    Options {
        access: Access::ReadOnly,
        connect_deadline: Duration::from_secs(10),
        call_deadline: Duration::from_secs(4),
        budget: budget.clone(),
    }
}

/// A connection with a budget of its own.
pub(crate) async fn open() -> (Connection, Client) {
    Daemon::start().open(&Budget::new(DEFAULT_MAX_ABANDONED)).await
}

/// The daemon's end of one connection.
pub(crate) struct Client {
    reader: Box<dyn AsyncRead + Unpin + Send>,
    writer: Box<dyn AsyncWrite + Unpin + Send>,
}

impl Client {
    pub(crate) fn over(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { reader: Box::new(reader), writer: Box::new(writer) }
    }

    /// The next frame, whatever it is; `None` when the client has closed its end.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        /// In paused time: nobody has anything left to do, and no frame will ever come.
        const NEVER: Duration = Duration::from_secs(100_000);
        let mut head = [0; HEADER];
        let read = tokio::time::timeout(NEVER, self.reader.read_exact(&mut head));
        read.await.expect("a frame or the end, not silence").ok()?;
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let mut payload = vec![0; word(0) as usize - HEADER];
        self.reader.read_exact(&mut payload).await.ok()?;
        assert_eq!((word(8), word(24)), (1, 0), "version and status");
        Some(Frame { program: word(4), procedure: word(12), kind: word(16), serial: word(20), payload })
    }

    /// The next frame but PINGs, which are answered; it must be a call of this procedure.
    pub(crate) async fn call(&mut self, procedure: u32) -> Frame {
        let mut frame = self.frame().await.expect("a call, not the end");
        while (frame.program, frame.procedure) == (KEEPALIVE, PING) {
            self.keepalive(PONG).await;
            frame = self.frame().await.expect("a call, not the end");
        }
        assert_eq!((frame.program, frame.procedure, frame.kind), (REMOTE, procedure, CALL));
        frame
    }

    /// Nothing more comes: the client has closed its end.
    pub(crate) async fn end(&mut self) {
        assert_eq!(self.frame().await, None);
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).await.expect("the client reads");
    }

    pub(crate) async fn reply(&mut self, call: &Frame, payload: Xdr) {
        self.send(&call.reply(payload)).await;
    }

    pub(crate) async fn keepalive(&mut self, procedure: u32) {
        self.send(&frame(KEEPALIVE, procedure, MESSAGE, 0, 0, &[])).await;
    }

    /// Answers with a `virNetMessageError`.
    pub(crate) async fn refuse(&mut self, call: &Frame, code: u32, message: &str) {
        self.refuse_in_bytes(call, code, message.as_bytes()).await;
    }

    /// The same, in words that need not be UTF-8.
    pub(crate) async fn refuse_in_bytes(&mut self, call: &Frame, code: u32, message: &[u8]) {
        let error = Xdr::default()
            .u32(code)
            .u32(7)
            .u32(1)
            .opaque(message)
            .u32(2)
            .u32(0) // no domain
            .u32(1)
            .string("%s")
            .u32(0)
            .u32(0)
            .u32(u32::MAX)
            .u32(u32::MAX)
            .u32(0); // no network
        self.send(&frame(REMOTE, call.procedure, REPLY, call.serial, 1, &error.0)).await;
    }

    /// The handshake as libvirtd does it on a socket without authentication.
    pub(crate) async fn welcome(&mut self, keepalive: u32) {
        let first = self.call(AUTH_LIST).await;
        self.let_in(&first, keepalive).await;
    }

    /// The handshake from the answer to its first call.
    pub(crate) async fn let_in(&mut self, first: &Frame, keepalive: u32) {
        self.reply(first, Xdr::default().u32(1).u32(0)).await;
        let call = self.call(CONNECT_OPEN).await;
        self.reply(&call, Xdr::default()).await;
        let call = self.call(SUPPORTS_FEATURE).await;
        assert_eq!(call.payload, Xdr::default().u32(10).0, "the feature is keepalive");
        self.reply(&call, Xdr::default().u32(keepalive)).await;
    }

    /// One host name call, asked and answered: shows that the connection works, and that everything sent before
    /// has been taken in.
    pub(crate) async fn hostname(&mut self, connection: &Connection) {
        let script = async {
            let call = self.call(GET_HOSTNAME).await;
            self.reply(&call, Xdr::default().string("hv1")).await;
        };
        let (hostname, ()) = tokio::join!(connection.hostname(), script);
        assert_eq!(hostname.expect("an answer"), "hv1");
    }
}

pub(crate) fn domain(id: i32) -> Domain {
    Domain { name: format!("guest-{id}").into(), uuid: [id as u8; 16], id }
}

/// A bulk call, which can reach a monitor.
pub(crate) async fn bulk(connection: &Connection, deadline: Instant) -> Result<usize, Error> {
    bulk_of(connection, &[domain(1)], deadline).await
}

pub(crate) async fn bulk_of(
    connection: &Connection,
    domains: &[Domain],
    deadline: Instant,
) -> Result<usize, Error> {
    connection.stats(domains, Groups::BALLOON, StatsFlags::NOWAIT, deadline, &mut Count::default()).await
}

pub(crate) fn after(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

/// Counts what it is shown.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) begun: usize,
    pub(crate) params: usize,
    pub(crate) ended: usize,
}

impl StatsVisitor for Count {
    fn begin(&mut self, _: DomainRef<'_>) {
        self.begun += 1;
    }

    fn param(&mut self, _: &str, _: Value<'_>) {
        self.params += 1;
    }

    fn end(&mut self) {
        self.ended += 1;
    }
}
