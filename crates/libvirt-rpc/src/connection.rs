//! One connection to a daemon: many calls at once, told apart by serial.
//!
//! ```text
//!  call ── turn, place ──▶ table[serial] ──▶ writer task ──▶ socket ──▶ daemon
//!    ▲                          │                                          │
//!    └──── Ticket ◀── reply ◀───┴──────────── reader task ◀── socket ◀─────┘
//!                                                  └──▶ event queue, PONG
//! ```
//!
//! The daemon reads at most five requests at a time from one client. Four turns are for calls that can reach
//! a monitor, one for job-free calls; a turn is held until the reply comes, also past the deadline. So there
//! is always room for a job-free call, however many monitors hang. See [`Budget`] for the places that a host
//! grants beyond one connection.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::auth;
use crate::budget::{Budget, Place};
use crate::error::{Error, ErrorCode};
use crate::events::{self, Event, EventQueue};
use crate::frame::{self, HEADER, Header, KEEPALIVE, MAX_FRAME, REMOTE, Type};
use crate::printable::printable;
use crate::procedure::{Class, Procedure};
use crate::transport::{self, Access, Channel, DaemonProcess, PROC, Peer, Stream};
use crate::uri::Uri;
use crate::xdr::{Decoder, Encoder, Malformed};

/// Calls in flight that can reach a monitor, given-up ones included: one less than the daemon's own limit of
/// requests a client (`max_client_requests`, 5), so that a job-free call always finds a place.
pub const MONITOR_CALLS: usize = 4;

/// Frames waiting to be written. More than can be in flight; a full queue means that the socket is stuck.
const WRITE_QUEUE: usize = 16;

/// Memory reserved for a frame before any of its bytes came.
const FIRST_RESERVE: usize = 256 * 1024;

/// A PING goes out after this long without a word from the daemon.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// PINGs without an answer after which the connection counts as lost (30 s of silence in all).
const KEEPALIVE_COUNT: u32 = 2;
/// The same in intervals while all five requests are taken and no PING would be read: two minutes of silence. A
/// job-free call is among the five then, and none takes that long. Without this bound a host that lost its power
/// would be waited for until the kernel gives up sending, a quarter of an hour.
const KEEPALIVE_COUNT_FULL: u32 = 11;
/// How long a polite goodbye may take.
const CLOSE_DEADLINE: Duration = Duration::from_millis(500);

/// VIR_DRV_FEATURE_PROGRAM_KEEPALIVE: asking for it starts the daemon's own keepalive as well.
const FEATURE_KEEPALIVE: i32 = 10;
/// VIR_CONNECT_RO
const OPEN_READ_ONLY: u32 = 1;

/// How to connect.
#[derive(Clone, Debug)]
pub struct Options {
    /// Read-only unless something must be changed.
    pub access: Access,
    /// For reaching the daemon and for the handshake together. Behind ssh the first answer of the handshake takes a
    /// whole login.
    pub connect_deadline: Duration,
    /// For each call on the open connection whose method takes no deadline of its own.
    pub call_deadline: Duration,
    /// The host's, shared by its connections one after another.
    pub budget: Budget,
}

/// An open connection. Dropping it closes the socket at once; [`Connection::close`] says goodbye first.
#[derive(Debug)]
pub struct Connection {
    link: Arc<Link>,
    pub(crate) call_deadline: Duration,
    access: Access,
    tasks: Vec<JoinHandle<()>>,
}

/// What the connection's tasks and callers share.
#[derive(Debug)]
struct Link {
    /// Keeps an ssh child alive as long as the connection.
    peer: Peer,
    out: mpsc::Sender<Vec<u8>>,
    table: Mutex<Table>,
    /// True once the connection is lost: ends its tasks, and so closes the socket, and wakes who waits for a turn.
    gone: watch::Sender<bool>,
    monitor_turns: Arc<Semaphore>,
    job_free_turns: Arc<Semaphore>,
    budget: Budget,
    events: EventQueue,
    epoch: Instant,
    /// Milliseconds after `epoch` at which the last bytes came.
    heard_ms: AtomicU32,
}

#[derive(Debug, Default)]
struct Table {
    last_serial: u32,
    pending: HashMap<u32, Pending>,
    lost: Option<Lost>,
    /// The daemon's, as far as it is known.
    process: Option<DaemonProcess>,
}

/// A call that was sent and has no reply yet.
#[derive(Debug)]
struct Pending {
    procedure: Procedure,
    reply: oneshot::Sender<Result<Reply, Lost>>,
    late: Late,
    place: Option<Place>,
    _turn: OwnedSemaphorePermit,
}

/// Why a connection is of no use any more, for every waiter.
#[derive(Clone, Debug)]
enum Lost {
    /// The socket ended or failed: why, and whether trying again may help.
    Socket { what: String, retryable: bool },
    /// The daemon's bytes make no sense.
    Malformed { procedure: &'static str, malformed: Malformed },
}

impl Lost {
    fn socket(what: impl Into<String>) -> Self {
        Self::Socket { what: what.into(), retryable: true }
    }

    /// What the transport says of its end.
    fn of(error: Error) -> Self {
        match error {
            Error::Connection { what, retryable, .. } => Self::Socket { what, retryable },
            other => Self::socket(other.to_string()),
        }
    }
}

/// A whole reply frame; the payload begins at [`HEADER`].
#[derive(Debug)]
pub(crate) struct Reply {
    frame: Vec<u8>,
    failed: bool,
}

/// A call in flight. Dropping it before the reply has come (a deadline, a cancelled caller) gives it up.
#[derive(Debug)]
struct Ticket<'a> {
    link: &'a Link,
    procedure: Procedure,
    serial: u32,
    reply: oneshot::Receiver<Result<Reply, Lost>>,
    late: Late,
    sent: Instant,
}

/// Tells of a given-up call whether the daemon is still at it.
#[derive(Clone, Debug)]
pub struct Late(LateState);

#[derive(Clone, Debug)]
enum LateState {
    /// No turn, or no room, until the deadline.
    NeverSent,
    /// Sent; true once it is over.
    Sent(Arc<AtomicBool>),
}

impl Late {
    /// True once the reply has come (and was dropped) or the connection was lost, and for a call that was never sent.
    pub fn is_over(&self) -> bool {
        match &self.0 {
            LateState::NeverSent => true,
            LateState::Sent(over) => over.load(Ordering::Acquire),
        }
    }

    /// True where the daemon has been asked at all: else it was earlier calls that were not answered.
    pub fn was_sent(&self) -> bool {
        matches!(self.0, LateState::Sent(_))
    }

    fn set_over(&self) {
        if let LateState::Sent(over) = &self.0 {
            over.store(true, Ordering::Release);
        }
    }

    fn sent() -> Self {
        Self(LateState::Sent(Arc::default()))
    }

    fn never_sent() -> Self {
        Self(LateState::NeverSent)
    }
}

impl Connection {
    /// Reaches the daemon, proves who we are, opens the hypervisor driver and agrees on keepalive.
    ///
    /// # Errors
    /// [`Error::Connection`] where the daemon cannot be reached, refuses us or does not answer in time,
    /// [`Error::Remote`] where it has no such driver.
    pub async fn open(uri: &Uri, options: Options) -> Result<Self, Error> {
        let connect_deadline = options.connect_deadline;
        let deadline = Instant::now() + connect_deadline;
        let stream = transport::dial(uri, options.access, connect_deadline).await?;
        let mut connection = Self::over(stream, options);
        let name = uri.remote_name();
        // Each call of the handshake ends by the deadline, and nothing else in it waits.
        match connection.handshake(&name, uri, deadline).await {
            Ok(()) => {
                connection.link.confirm_process();
                Ok(connection)
            }
            Err(Error::Deadline { procedure, .. }) => {
                let answered_before = procedure != Procedure::AUTH_LIST.name();
                Err(connection.link.peer.silent(connect_deadline, answered_before))
            }
            Err(error) => Err(error),
        }
    }

    /// Starts the tasks on a dialled stream, before any handshake.
    pub(crate) fn over(stream: Stream, options: Options) -> Self {
        let Stream { reader, writer, peer } = stream;
        let (out, frames) = mpsc::channel(WRITE_QUEUE);
        options.budget.daemon_is(peer.process);
        let table = Table { process: peer.process, ..Table::default() };
        let link = Arc::new(Link {
            peer,
            out,
            table: Mutex::new(table),
            gone: watch::Sender::new(false),
            monitor_turns: Arc::new(Semaphore::new(MONITOR_CALLS)),
            job_free_turns: Arc::new(Semaphore::new(1)),
            budget: options.budget,
            events: EventQueue::default(),
            epoch: Instant::now(),
            heard_ms: AtomicU32::new(0),
        });
        let tasks = vec![
            tokio::spawn(until_lost(Arc::clone(&link), read_frames(Arc::clone(&link), reader))),
            tokio::spawn(until_lost(Arc::clone(&link), write_frames(Arc::clone(&link), writer, frames))),
        ];
        Self { link, call_deadline: options.call_deadline, access: options.access, tasks }
    }

    async fn handshake(&mut self, name: &str, uri: &Uri, deadline: Instant) -> Result<(), Error> {
        auth::authenticate(self, uri, deadline).await?;
        let flags = match self.access {
            Access::ReadOnly => OPEN_READ_ONLY,
            Access::ReadWrite => 0,
        };
        let open = |e: &mut Encoder<'_>| {
            e.u32(1).string(name).u32(flags);
        };
        self.call_by(Procedure::CONNECT_OPEN, deadline, open, |d| d.end()).await?;
        let feature = |e: &mut Encoder<'_>| {
            e.i32(FEATURE_KEEPALIVE);
        };
        let keepalive =
            self.call_by(Procedure::CONNECT_SUPPORTS_FEATURE, deadline, feature, |d| d.i32()).await;
        match keepalive {
            Ok(1) => {
                let task = keep_alive(Arc::clone(&self.link));
                self.tasks.push(tokio::spawn(until_lost(Arc::clone(&self.link), task)));
            }
            // A daemon or driver without it: silence then shows by the deadlines of calls.
            Ok(_) | Err(Error::Remote { .. }) => tracing::debug!(peer = self.peer(), "no keepalive"),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Says goodbye (libvirtd logs an error for each client that does not) and closes the socket.
    pub async fn close(self) {
        let bye = self.call(Procedure::CONNECT_CLOSE, |_| {}, |d| d.end());
        if let Ok(Err(error)) = timeout(CLOSE_DEADLINE, bye).await {
            tracing::debug!(%error, "no goodbye");
        }
    }

    /// Who is at the other end, for messages.
    pub fn peer(&self) -> &str {
        &self.link.peer.label
    }

    /// The daemon's process, where the transport tells (see [`Peer::process`]) and it is the one that answered.
    pub fn daemon_process(&self) -> Option<DaemonProcess> {
        self.link.table().process
    }

    /// How the daemon is reached.
    pub fn channel(&self) -> Channel {
        self.link.peer.channel
    }

    pub(crate) fn access(&self) -> Access {
        self.access
    }

    pub(crate) fn host_for_auth(&self) -> &str {
        &self.link.peer.host_for_auth
    }

    /// The host's places for calls that can reach a monitor.
    pub fn budget(&self) -> &Budget {
        &self.link.budget
    }

    /// Why the connection is of no use any more, once it is: every further call fails at once.
    pub fn lost(&self) -> Option<Error> {
        let lost = self.link.table().lost.clone()?;
        Some(match lost {
            Lost::Socket { what, retryable } => {
                Error::connection(&self.link.peer.label, what, retryable, None)
            }
            malformed => self.link.lost(&malformed, Procedure::CONNECT_OPEN),
        })
    }

    /// The next event and when it came; `None` when the connection is gone. Cancel-safe.
    pub async fn next_event(&self) -> Option<(Instant, Event)> {
        self.link.events.next().await
    }

    /// An event that has already come, if there is one.
    pub fn try_event(&self) -> Option<(Instant, Event)> {
        self.link.events.try_next()
    }

    /// Calls and decodes, within the connection's default deadline.
    pub(crate) async fn call<T>(
        &self,
        procedure: Procedure,
        args: impl FnOnce(&mut Encoder<'_>),
        decode: impl FnOnce(&mut Decoder<'_>) -> Result<T, Malformed>,
    ) -> Result<T, Error> {
        self.call_by(procedure, Instant::now() + self.call_deadline, args, decode).await
    }

    /// The same until `deadline`: each call of the handshake has what is left of the connect deadline.
    pub(crate) async fn call_by<T>(
        &self,
        procedure: Procedure,
        deadline: Instant,
        args: impl FnOnce(&mut Encoder<'_>),
        decode: impl FnOnce(&mut Decoder<'_>) -> Result<T, Malformed>,
    ) -> Result<T, Error> {
        self.call_as(procedure, procedure.class(), deadline, args, decode).await
    }

    /// Sends a call as soon as it has a turn and, if it can reach a monitor, a place; waits for its reply
    /// until `deadline`.
    ///
    /// # Errors
    /// [`Error::Deadline`], after which the daemon may still be at it; [`Error::Budget`] if every place is
    /// held by a given-up call; [`Error::Argument`] if the frame would be too long; [`Error::Remote`],
    /// [`Error::Connection`], [`Error::Protocol`].
    pub(crate) async fn call_as<T>(
        &self,
        procedure: Procedure,
        class: Class,
        deadline: Instant,
        args: impl FnOnce(&mut Encoder<'_>),
        decode: impl FnOnce(&mut Decoder<'_>) -> Result<T, Malformed>,
    ) -> Result<T, Error> {
        let link = &*self.link;
        let mut bytes = encode(procedure, args)?;
        let begun = Instant::now();
        let granted = tokio::select! {
            biased;
            () = link.gone() => return Err(link.lost_now(procedure)),
            granted = timeout_at(deadline, link.turn(class)) => granted,
        };
        let (turn, place) = match granted {
            // A deadline that has passed: what is sent now would be given up at once, and hold its place.
            Ok(Some(_)) if Instant::now() >= deadline => {
                return Err(link.deadline(procedure, begun, Late::never_sent()));
            }
            Ok(Some(granted)) => granted,
            Ok(None) => return Err(link.no_place(procedure)),
            // The calls that were waited for may have been given up meanwhile.
            Err(_) if class == Class::Monitor && link.is_exhausted() => return Err(link.no_place(procedure)),
            Err(_) => return Err(link.deadline(procedure, begun, Late::never_sent())),
        };
        // Room in the queue comes before the table: what is in the table is sent, and so answered some time.
        let room = match timeout_at(deadline, link.out.reserve()).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) => return Err(link.lost_now(procedure)),
            Err(_) => return Err(link.deadline(procedure, begun, Late::never_sent())),
        };
        let mut ticket = link.enter(procedure, turn, place)?;
        frame::set_serial(&mut bytes, ticket.serial);
        room.send(bytes);
        match timeout_at(deadline, &mut ticket.reply).await {
            Ok(Ok(reply)) => link.decode(procedure, reply, decode),
            Ok(Err(_)) => Err(link.lost_now(procedure)),
            Err(_) => Err(link.deadline(procedure, ticket.sent, ticket.late.clone())),
        }
    }
}

/// A call's frame, with no serial yet: that is given when it is sent.
fn encode(procedure: Procedure, args: impl FnOnce(&mut Encoder<'_>)) -> Result<Vec<u8>, Error> {
    let header =
        Header { program: REMOTE, procedure: procedure as i32, kind: Type::Call, serial: 0, failed: false };
    let bytes = frame::encode(header, args);
    // The daemon would close the connection on it, without a word.
    if bytes.len() > MAX_FRAME {
        let what = format!("a message of {} bytes: libvirt takes at most {MAX_FRAME}", bytes.len());
        return Err(Error::Argument { procedure: procedure.name(), what });
    }
    Ok(bytes)
}

impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.link.lose(Lost::socket("closed by us"));
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.link.table().pending.get_mut(&self.serial).and_then(|p| p.place.as_mut()) {
            tracing::debug!(peer = self.link.peer.label, call = self.procedure.name(), "given up");
            place.give_up();
        }
    }
}

/// `virNetMessageError`; only the parts that say something are kept, the message as a line fit to be shown.
pub(crate) fn remote_error(d: &mut Decoder<'_>) -> Result<(ErrorCode, i32, String), Malformed> {
    fn text(d: &mut Decoder<'_>) -> Result<(), Malformed> {
        d.option(|d| d.text()).map(drop)
    }
    let code = ErrorCode(d.i32()?);
    let domain = d.i32()?;
    let message = d.option(|d| d.text())?.map(|message| printable(&message));
    let message = message.unwrap_or_else(|| "error without a message".to_owned());
    let _level = d.i32()?;
    d.option(|d| d.text().and_then(|_| d.fixed::<16>()).and_then(|_| d.i32()))?;
    text(d)?;
    text(d)?;
    text(d)?;
    d.i32()?;
    d.i32()?;
    d.option(|d| d.text().and_then(|_| d.fixed::<16>()))?;
    d.end()?;
    Ok((code, domain, message))
}

impl Link {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Once the handshake has been answered: a process that no longer exists is not the one that did so.
    fn confirm_process(&self) {
        self.table().process.take_if(|process| process.is_gone(Path::new(PROC)));
    }

    /// Returns once the connection is lost.
    async fn gone(&self) {
        // The sender is ours: it outlives the wait.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    /// True where given-up calls hold every place of the host or every turn of this connection.
    fn is_exhausted(&self) -> bool {
        let given_up = |call: &&Pending| call.place.as_ref().is_some_and(Place::is_given_up);
        self.budget.is_exhausted() || self.table().pending.values().filter(given_up).count() >= MONITOR_CALLS
    }

    /// A turn on this connection and, for a call that can reach a monitor, a place on the host. `None` while
    /// given-up calls hold every one.
    async fn turn(&self, class: Class) -> Option<(OwnedSemaphorePermit, Option<Place>)> {
        let (turns, place) = match class {
            Class::Monitor if self.is_exhausted() => return None,
            Class::Monitor => (&self.monitor_turns, Some(self.budget.place().await?)),
            Class::JobFree => (&self.job_free_turns, None),
        };
        Some((Arc::clone(turns).acquire_owned().await.ok()?, place))
    }

    /// Puts a call into the table. From here on it is counted until its reply comes.
    fn enter(
        &self,
        procedure: Procedure,
        turn: OwnedSemaphorePermit,
        place: Option<Place>,
    ) -> Result<Ticket<'_>, Error> {
        let (reply_to, reply) = oneshot::channel();
        let late = Late::sent();
        let mut table = self.table();
        if let Some(lost) = &table.lost {
            return Err(self.lost(lost, procedure));
        }
        table.last_serial = table.last_serial.wrapping_add(1);
        let serial = table.last_serial;
        let pending = Pending { procedure, reply: reply_to, late: late.clone(), place, _turn: turn };
        table.pending.insert(serial, pending);
        Ok(Ticket { link: self, procedure, serial, reply, late, sent: Instant::now() })
    }

    fn decode<T>(
        &self,
        procedure: Procedure,
        reply: Result<Reply, Lost>,
        decode: impl FnOnce(&mut Decoder<'_>) -> Result<T, Malformed>,
    ) -> Result<T, Error> {
        let reply = reply.map_err(|lost| self.lost(&lost, procedure))?;
        let mut d = Decoder::new(&reply.frame[HEADER..], HEADER);
        let decoded = if reply.failed { remote_error(&mut d).map(Err) } else { decode(&mut d).map(Ok) };
        match decoded {
            Ok(Ok(value)) => Ok(value),
            Ok(Err((code, domain, message))) => Err(Error::Remote {
                peer: self.peer.label.clone(),
                procedure: procedure.name(),
                code,
                domain,
                message,
            }),
            Err(malformed) => {
                let lost = Lost::Malformed { procedure: procedure.name(), malformed };
                let error = self.lost(&lost, procedure);
                self.lose(lost);
                Err(error)
            }
        }
    }

    fn no_place(&self, procedure: Procedure) -> Error {
        Error::Budget {
            peer: self.peer.label.clone(),
            procedure: procedure.name(),
            outstanding: self.budget.abandoned(),
        }
    }

    fn deadline(&self, procedure: Procedure, since: Instant, late: Late) -> Error {
        Error::Deadline {
            peer: self.peer.label.clone(),
            procedure: procedure.name(),
            after: since.elapsed(),
            late,
        }
    }

    fn lost(&self, lost: &Lost, during: Procedure) -> Error {
        match lost {
            Lost::Socket { what, retryable } => {
                // The first call of all: there was no connection yet that could be lost.
                let what = match during {
                    Procedure::AUTH_LIST => what.clone(),
                    _ => format!("connection lost during {}: {what}", during.name()),
                };
                Error::connection(&self.peer.label, what, *retryable, None)
            }
            Lost::Malformed { procedure, malformed } => Error::Protocol {
                peer: self.peer.label.clone(),
                procedure,
                offset: malformed.offset,
                expected: malformed.expected.clone(),
            },
        }
    }

    fn lost_now(&self, during: Procedure) -> Error {
        let lost = self.table().lost.clone().unwrap_or_else(|| Lost::socket("closed"));
        self.lost(&lost, during)
    }

    /// Why the socket ended, as far as the transport can tell (an ssh process has words of its own).
    async fn last_words(&self, source: Option<io::Error>) -> Lost {
        Lost::of(self.peer.lost(source).await)
    }

    /// Ends the connection for everyone: waiters get `why`, places of calls that may still hang become orphans.
    fn lose(&self, why: Lost) {
        let (pending, process) = {
            let mut table = self.table();
            if table.lost.is_none() {
                table.lost = Some(why.clone());
            }
            (std::mem::take(&mut table.pending), table.process)
        };
        for (_, call) in pending {
            if let Some(place) = call.place {
                place.socket_died(process);
            }
            call.late.set_over();
            // A waiter that is gone does not want to know.
            let _ = call.reply.send(Err(why.clone()));
        }
        self.events.close();
        self.gone.send_replace(true);
    }

    /// Handles one whole frame. An error ends the connection.
    fn receive(&self, bytes: Vec<u8>) -> Result<(), Lost> {
        let malformed = |procedure: &'static str, malformed| Lost::Malformed { procedure, malformed };
        let header = frame::header(&bytes).map_err(|m| malformed("frame", m))?;
        let procedure = Procedure::from_number(header.procedure);
        match (header.program, header.kind) {
            (KEEPALIVE, Type::Message) => {
                if header.procedure == 1 {
                    // If the queue is full the socket is stuck, and a PONG would come too late anyway.
                    let _ = self.out.try_send(keepalive_frame(2));
                }
                Ok(())
            }
            (REMOTE, Type::Reply) => {
                let mut table = self.table();
                let Some(called) = table.pending.get(&header.serial).map(|call| call.procedure) else {
                    let expected = format!("serial of a call in flight, not {}", header.serial);
                    return Err(malformed("reply", Malformed { offset: 20, expected }));
                };
                if procedure != Some(called) {
                    // The call stays in the table, for `lose` to tell its waiter and to keep its place.
                    let expected = format!("procedure {}, not {}", called as i32, header.procedure);
                    return Err(malformed(called.name(), Malformed { offset: 12, expected }));
                }
                let Some(call) = table.pending.remove(&header.serial) else { return Ok(()) };
                drop(table);
                call.late.set_over();
                // Nobody may be waiting any more: a late reply ends here.
                let _ = call.reply.send(Ok(Reply { frame: bytes, failed: header.failed }));
                Ok(())
            }
            (REMOTE, Type::Message) => {
                let Some(procedure) = procedure else { return Ok(()) };
                let mut d = Decoder::new(&bytes[HEADER..], HEADER);
                match events::decode(procedure, &mut d) {
                    Ok(Some(event)) => self.events.push(event),
                    Ok(None) => {}
                    Err(m) => return Err(malformed(procedure.name(), m)),
                }
                Ok(())
            }
            (_, kind) => {
                let expected = format!("reply or message, not {kind:?} of program {:#x}", header.program);
                Err(malformed("frame", Malformed { offset: 16, expected }))
            }
        }
    }
}

/// Runs a task of the connection until it ends or the connection is lost.
async fn until_lost(link: Arc<Link>, task: impl Future<Output = ()>) {
    tokio::select! {
        () = link.gone() => {}
        () = task => {}
    }
}

async fn read_frames(link: Arc<Link>, reader: impl AsyncRead + Unpin) {
    let mut reader = BufReader::with_capacity(8 * 1024, Heard { reader, link: &link });
    // What cannot be read is found out again below.
    if let Ok(start) = reader.fill_buf().await
        && let Some(text) = link.peer.text_first(start)
    {
        link.lose(Lost::of(text));
        return;
    }
    let why = loop {
        let bytes = match read_frame(&mut reader).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(malformed)) => break Lost::Malformed { procedure: "frame", malformed },
            Err(error) => {
                break link
                    .last_words(Some(error).filter(|e| e.kind() != io::ErrorKind::UnexpectedEof))
                    .await;
            }
        };
        if let Err(lost) = link.receive(bytes) {
            break lost;
        }
    };
    link.lose(why);
}

/// Notes each piece that comes, so that a long frame on a slow line, with no room for a keepalive answer in between, is
/// not taken for silence.
struct Heard<'a, R> {
    reader: R,
    link: &'a Link,
}

impl<R: AsyncRead + Unpin> AsyncRead for Heard<'_, R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.reader).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.link.heard_ms.store(millis(self.link.epoch.elapsed()), Ordering::Relaxed);
        }
        read
    }
}

/// Reads one whole frame. Memory grows with the bytes that really come, not with the length that is claimed.
async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Result<Vec<u8>, Malformed>> {
    let mut word = [0; 4];
    reader.read_exact(&mut word).await?;
    let length = match frame::length(word) {
        Ok(length) => length,
        Err(malformed) => return Ok(Err(malformed)),
    };
    let mut bytes = Vec::with_capacity(length.min(FIRST_RESERVE));
    bytes.extend_from_slice(&word);
    let mut rest = reader.take((length - word.len()) as u64);
    while bytes.len() < length {
        if rest.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Ok(bytes))
}

async fn write_frames(
    link: Arc<Link>,
    mut writer: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Vec<u8>>,
) {
    while let Some(bytes) = frames.recv().await {
        let written = async {
            writer.write_all(&bytes).await?;
            writer.flush().await
        };
        if let Err(error) = written.await {
            let why = link.last_words(Some(error)).await;
            link.lose(why);
            return;
        }
    }
}

/// Sends a PING into every silence and declares the connection lost when nobody answers.
async fn keep_alive(link: Arc<Link>) {
    let mut unanswered = 0;
    let mut heard = link.heard_ms.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(KEEPALIVE_INTERVAL).await;
        let now = link.heard_ms.load(Ordering::Relaxed);
        if now != heard {
            (heard, unanswered) = (now, 0);
            continue;
        }
        // With all its five requests taken the daemon does not read, so it cannot answer a PING either.
        let full = link.table().pending.len() > MONITOR_CALLS;
        if unanswered >= if full { KEEPALIVE_COUNT_FULL } else { KEEPALIVE_COUNT } {
            let silence = KEEPALIVE_INTERVAL * (unanswered + 1);
            link.lose(Lost::socket(format!("no keepalive answer for {silence:?}")));
            return;
        }
        unanswered += 1;
        if !full {
            let _ = link.out.try_send(keepalive_frame(1));
        }
    }
}

/// Procedure 1 is PING, 2 PONG; neither has a payload or a serial of its own.
fn keepalive_frame(procedure: i32) -> Vec<u8> {
    let header = Header { program: KEEPALIVE, procedure, kind: Type::Message, serial: 0, failed: false };
    frame::encode(header, |_| {})
}

fn millis(d: Duration) -> u32 {
    // Wraps after 49 days; only compared for being equal.
    d.as_millis() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time and notes the most room that it was ever offered, beyond what it had given.
    struct Trickle {
        bytes: Vec<u8>,
        at: usize,
        most_ahead: usize,
    }

    impl AsyncRead for Trickle {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.most_ahead = self.most_ahead.max(buf.remaining().saturating_sub(self.at));
            let end = self.bytes.len().min(self.at + 1000.min(buf.remaining()));
            buf.put_slice(&self.bytes[self.at..end]);
            self.at = end;
            Poll::Ready(Ok(()))
        }
    }

    /// The frame's claimed length, and how much of it comes.
    #[tokio::test]
    async fn memory_grows_with_the_bytes_that_come_not_with_the_length_that_is_claimed() {
        for (claimed, sent, whole) in [
            (frame::MAX_FRAME, 10, false),
            (frame::MAX_FRAME, 3_000_000, false),
            (3_000_000, 3_000_000, true),
            (HEADER, HEADER, true),
        ] {
            let mut bytes = vec![7; sent];
            bytes[..4].copy_from_slice(&(claimed as u32).to_be_bytes());
            let mut reader = Trickle { bytes, at: 0, most_ahead: 0 };
            let read = read_frame(&mut reader).await;
            assert!(reader.most_ahead <= FIRST_RESERVE, "{claimed}: {} bytes too early", reader.most_ahead);
            match read {
                Ok(Ok(frame)) => assert!(whole && frame == reader.bytes),
                Err(error) => assert!(!whole && error.kind() == io::ErrorKind::UnexpectedEof),
                Ok(Err(malformed)) => panic!("{malformed:?}"),
            }
        }
    }
}
