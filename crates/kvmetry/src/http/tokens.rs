//! Tokens: who may write, read or administer.
//!
//! A token is shown once, when it is made; what is kept is its SHA-256, in a file that the running server reads again
//! when it has changed:
//!
//! ```text
//! {"version":1,
//!  "tokens":[{"name":"collector","scopes":["write"],"sha256":"9f86d0…","created":"2026-11-22T21:48:59Z"}]}
//! ```
//!
//! A plain hash is enough: a token has 256 random bits, so there is nothing to guess. Nor does looking one up tell by
//! its time how near a guess was: what is compared is a hash that the guesser cannot choose.
//!
//! **Tokens are demanded from everybody as soon as the file exists**, also on loopback, and also when the last token
//! in it was revoked: taking a token away must never open a door. Without the file a port on loopback is open.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::stamp::Stamp;

/// How every token begins, so that scanners for leaked secrets and people know one when they see it.
pub(crate) const PREFIX: &str = "kvmetry_";
/// Random bytes of a token: beyond guessing for good.
const RANDOM_BYTES: usize = 32;
/// Tokens in a file: one a collector, a dashboard and a person of a large site.
const MAX_TOKENS: usize = 1000;
/// The largest file, bytes: [`MAX_TOKENS`] of them take 200 kB.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The longest name, bytes.
const MAX_NAME_BYTES: usize = 64;
/// Of the file, and of what stands beside it while it is changed: for its owner only.
const MODE: u32 = 0o600;
/// Of a data directory that is made for the file: as the server makes it.
const DIR_MODE: u32 = 0o750;
/// How long a disk may take to say what stands in the file. Then nobody is let in: a client's own patience ends.
const LOOK_WITHIN: Duration = Duration::from_secs(5);
/// The file's format.
const VERSION: u32 = 1;

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// Write lines, which makes databases and tables
    Write,
    /// Query, and list databases
    Read,
    /// Make and change databases; and all that the others may
    Admin,
}

impl Scope {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

/// A token as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Token {
    pub(crate) name: String,
    pub(crate) scopes: Vec<Scope>,
    /// SHA-256 of the token, lower-case hexadecimal.
    sha256: String,
    /// RFC 3339, UTC.
    pub(crate) created: String,
}

impl Token {
    /// Whether it is good for this.
    pub(crate) fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }

    /// Its scopes, for a person.
    pub(crate) fn scope_names(&self) -> String {
        self.scopes.iter().map(|scope| scope.name()).collect::<Vec<_>>().join(", ")
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u32,
    tokens: Vec<Token>,
}

/// Why tokens cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokensError {
    #[error("the tokens in {} cannot be {what}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is damaged: {why}; restore it, or remove it and make new tokens", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{} has version {found}, this kvmetry knows {VERSION}: it was written by a newer one", path.display())]
    Newer { path: PathBuf, found: u64 },
    #[error("another kvmetry is changing {}; try again", .0.display())]
    Locked(PathBuf),
    #[error(
        "there is a token called {0:?} already; choose another --name, or revoke it first: kvmetry token revoke {0}"
    )]
    NameTaken(String),
    #[error("{0:?} cannot be a token's name: 1 to {MAX_NAME_BYTES} of the characters A-Z a-z 0-9 . _ -")]
    NameWrong(String),
    #[error("there is no token called {0:?}; there are those of: kvmetry token list")]
    Unknown(String),
    #[error("there are {MAX_TOKENS} tokens, no more are kept: revoke those that are not used")]
    TooMany,
    #[error("the system gives no random bytes")]
    Random,
}

/// A token that was just made.
#[derive(Debug)]
pub(crate) struct New {
    pub(crate) name: String,
    /// The token itself: shown once, kept nowhere.
    pub(crate) secret: String,
}

/// Makes a token and keeps its hash. Without a name it is called after its first scope. `created` is RFC 3339.
///
/// # Errors
/// A name that is taken or none, or a file that cannot be read or written.
pub(crate) fn make(
    path: &Path,
    name: Option<&str>,
    scopes: &[Scope],
    created: String,
) -> Result<New, TokensError> {
    let secret = random()?;
    let sha256 = hex(&hash(&secret));
    let mut name = name.map(str::to_owned);
    if let Some(name) = name.as_deref().filter(|name| !is_name(name)) {
        return Err(TokensError::NameWrong(name.to_owned()));
    }
    change(path, |tokens| {
        let taken = |name: &str| tokens.iter().any(|token| token.name == name);
        if let Some(name) = name.as_deref().filter(|name| taken(name)) {
            return Err(TokensError::NameTaken(name.to_owned()));
        }
        if tokens.len() >= MAX_TOKENS {
            return Err(TokensError::TooMany);
        }
        let first = scopes.first().map_or("token", |scope| scope.name());
        let free = (1..=MAX_TOKENS).map(|n| format!("{first}-{n}")).find(|name| !taken(name));
        let name = name.get_or_insert_with(|| free.unwrap_or_default()).clone();
        let mut once = Vec::new();
        for scope in scopes {
            if !once.contains(scope) {
                once.push(*scope);
            }
        }
        tokens.push(Token { name, scopes: once, sha256, created });
        Ok(())
    })?;
    Ok(New { name: name.unwrap_or_default(), secret })
}

/// All tokens; none where there is no file.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn list(path: &Path) -> Result<Vec<Token>, TokensError> {
    Ok(read(path)?.map(|(tokens, _)| tokens).unwrap_or_default())
}

/// Takes a token away: the running server refuses it from its next request on. Returns how many are left.
///
/// # Errors
/// There is no such token, or the file cannot be read or written.
pub(crate) fn revoke(path: &Path, name: &str) -> Result<usize, TokensError> {
    if !path.exists() {
        return Err(TokensError::Unknown(name.to_owned()));
    }
    let mut left = 0;
    change(path, |tokens| {
        let before = tokens.len();
        tokens.retain(|token| token.name != name);
        left = tokens.len();
        if left == before { Err(TokensError::Unknown(name.to_owned())) } else { Ok(()) }
    })?;
    Ok(left)
}

/// The tokens of a running server.
#[derive(Debug)]
pub(crate) struct Tokens {
    path: PathBuf,
    /// Where its folder was at the start.
    place: Option<(u64, u64)>,
    loaded: Mutex<Option<Loaded>>,
    /// One looks at a time: a disk that hangs must not take a thread for every request.
    turn: Arc<Semaphore>,
}

#[derive(Debug)]
struct Loaded {
    /// Of the file that was read; `None`: there was none.
    stamp: Option<Stamp>,
    /// By hash. `None`: there is no file.
    tokens: Option<Arc<HashMap<[u8; 32], Token>>>,
}

impl Tokens {
    pub(crate) fn new(path: PathBuf) -> Self {
        let place = place(&path);
        Self { path, place, loaded: Mutex::new(None), turn: Arc::new(Semaphore::new(1)) }
    }

    /// [`Tokens::current`] on a thread that may wait for the disk, as those of requests and hypervisors must not.
    ///
    /// # Errors
    /// As there, or the disk does not answer within [`LOOK_WITHIN`].
    pub(crate) async fn look(self: &Arc<Self>) -> Result<Option<Known>, TokensError> {
        let failed = |source| TokensError::Io { what: "read", path: self.path.clone(), source };
        let looked = async {
            let turn = Arc::clone(&self.turn).acquire_owned().await;
            let tokens = Arc::clone(self);
            let look = move || {
                let _turn = turn;
                tokens.current()
            };
            tokio::task::spawn_blocking(look).await
        };
        match tokio::time::timeout(LOOK_WITHIN, looked).await {
            Ok(Ok(found)) => found,
            Ok(Err(ended)) => Err(failed(io::Error::other(ended))),
            Err(_) => Err(failed(io::Error::new(io::ErrorKind::TimedOut, "the disk does not answer"))),
        }
    }

    /// What stands in the file now; `None` where there is none. It is looked at every time: that takes a microsecond,
    /// and so a token that was revoked is refused at once. Waits for the disk.
    ///
    /// # Errors
    /// A file that cannot be read: nobody can be let in then.
    pub(crate) fn current(&self) -> Result<Option<Known>, TokensError> {
        let stamp = Stamp::of(&self.path);
        let stamp =
            stamp.map_err(|source| TokensError::Io { what: "read", path: self.path.clone(), source })?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        match loaded.as_ref() {
            Some(loaded) if loaded.stamp == stamp => Ok(loaded.tokens.clone().map(Known)),
            // A file system that is gone must not open the port, nor whatever lies below let others in.
            _ if self.place.is_some() && place(&self.path) != self.place => Err(TokensError::Io {
                what: "read",
                path: self.path.clone(),
                source: io::Error::other("its folder is not the one that it was at the start"),
            }),
            _ => {
                let (stamp, tokens) = match read(&self.path)? {
                    Some((tokens, stamp)) => (Some(stamp), Some(Arc::new(by_hash(&self.path, tokens)?))),
                    None => (None, None),
                };
                *loaded = Some(Loaded { stamp, tokens: tokens.clone() });
                Ok(tokens.map(Known))
            }
        }
    }
}

/// The tokens that are good now.
#[derive(Debug)]
pub(crate) struct Known(Arc<HashMap<[u8; 32], Token>>);

impl Known {
    pub(crate) fn find(&self, secret: &str) -> Option<&Token> {
        self.0.get(&hash(secret))
    }

    /// The token that this cookie is of, see [`cookie_of`].
    pub(crate) fn find_cookie(&self, cookie: &str) -> Option<&Token> {
        self.0.iter().find(|(hash, _)| cookie_of_hash(hash) == cookie).map(|it| it.1)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a browser keeps for a token: good for the pages of this program and nothing else. Cookies know no ports: other
/// servers on this machine get it, too.
pub(crate) fn cookie_of(secret: &str) -> String {
    cookie_of_hash(&hash(secret))
}

fn cookie_of_hash(hash: &[u8; 32]) -> String {
    let of: [u8; 32] = Sha256::new().chain_update(b"kvmetry cookie").chain_update(hash).finalize().into();
    hex(&of)
}

/// Device and number of a file's folder; `None` if there is none.
fn place(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let folder = path.parent()?.metadata().ok()?;
    Some((folder.dev(), folder.ino()))
}

fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(good)
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// A new token, from the operating system's generator.
fn random() -> Result<String, TokensError> {
    let mut bytes = [0; RANDOM_BYTES];
    let provider = rustls::crypto::ring::default_provider();
    provider.secure_random.fill(&mut bytes).map_err(|_| TokensError::Random)?;
    Ok(format!("{PREFIX}{}", hex(&bytes)))
}

fn by_hash(path: &Path, tokens: Vec<Token>) -> Result<HashMap<[u8; 32], Token>, TokensError> {
    let mut found = HashMap::with_capacity(tokens.len());
    for token in tokens {
        let Some(hash) = unhex(&token.sha256) else {
            let why = format!("the sha256 of {:?} is not 64 hexadecimal digits", token.name);
            return Err(TokensError::Damaged { path: path.to_owned(), why });
        };
        found.insert(hash, token);
    }
    Ok(found)
}

/// The tokens of the file and its stamp; `None`: there is no file.
fn read(path: &Path) -> Result<Option<(Vec<Token>, Stamp)>, TokensError> {
    let damaged = |why: String| TokensError::Damaged { path: path.to_owned(), why };
    let read = || -> io::Result<(Vec<u8>, Stamp)> {
        let file = File::open(path)?;
        // Of the file that is read, which another may replace meanwhile.
        let stamp = Stamp::from(&file.metadata()?);
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        Ok((bytes, stamp))
    };
    let (bytes, stamp) = match read() {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(TokensError::Io { what: "read", path: path.to_owned(), source }),
    };
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(damaged(format!("larger than {} MiB", MAX_FILE_BYTES >> 20)));
    }
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    match value["version"].as_u64() {
        Some(version) if version == u64::from(VERSION) => {}
        Some(found) => return Err(TokensError::Newer { path: path.to_owned(), found }),
        None => return Err(damaged("it has no version".to_owned())),
    }
    let contents: Contents = serde_json::from_value(value).map_err(|error| damaged(error.to_string()))?;
    Ok(Some((contents.tokens, stamp)))
}

/// Reads, changes and replaces the file, while no other process of this program can.
fn change(
    path: &Path,
    change: impl FnOnce(&mut Vec<Token>) -> Result<(), TokensError>,
) -> Result<(), TokensError> {
    let io = |source| TokensError::Io { what: "changed", path: path.to_owned(), source };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(folder).map_err(io)?;
    // Where root makes a token for a service that has its own user, the service can read and change it.
    let lock = disk::open_or_create(&path.with_extension("lock"), MODE).map_err(io)?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => TokensError::Locked(path.to_owned()),
        TryLockError::Error(source) => io(source),
    })?;
    let mut tokens = read(path)?.map(|(tokens, _)| tokens).unwrap_or_default();
    change(&mut tokens)?;
    let mut text = serde_json::to_string_pretty(&Contents { version: VERSION, tokens })
        .map_err(|error| io(io::Error::other(error)))?;
    text.push('\n');
    replace(path, folder, text.as_bytes()).map_err(io)
}

/// Readers see the old file or the new one, also after a crash.
fn replace(path: &Path, folder: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    // What a crash may have left; made anew, so that its mode is ours.
    if let Err(error) = fs::remove_file(&new)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = disk::create_new(&new, MODE)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/tokens.json");
        (folder, path)
    }

    fn made(path: &Path, name: Option<&str>, scopes: &[Scope]) -> Result<New, TokensError> {
        make(path, name, scopes, "2026-11-22T21:48:59Z".to_owned())
    }

    #[test]
    fn a_token_is_kept_as_a_hash_only_and_for_its_owner_only() {
        let (_folder, path) = folder();
        let new = made(&path, Some("collector"), &[Scope::Write]).unwrap();
        assert_eq!(new.name, "collector");
        assert_eq!((new.secret.len(), new.secret.starts_with(PREFIX)), (PREFIX.len() + 64, true));

        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&new.secret[PREFIX.len()..]), "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expect = serde_json::json!({ "version": 1, "tokens": [{
            "name": "collector", "scopes": ["write"], "created": "2026-11-22T21:48:59Z",
            "sha256": hex(&Sha256::digest(&new.secret)),
        }] });
        assert_eq!(value, expect);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, DIR_MODE);
        let again = made(&path, None, &[Scope::Write]).unwrap();
        assert_ne!(again.secret, new.secret);
    }

    #[test]
    fn names() {
        let (_folder, path) = folder();
        let long = "x".repeat(MAX_NAME_BYTES);
        for (name, expect) in [
            (None, Ok("read-1")),
            (None, Ok("read-2")),
            (Some("read-3"), Ok("read-3")),
            (None, Ok("read-4")),
            (Some(long.as_str()), Ok(long.as_str())),
            (Some("read-3"), Err("there is a token called \"read-3\" already")),
            (Some(""), Err("\"\" cannot be a token's name")),
            (Some("a b"), Err("\"a b\" cannot be a token's name")),
            (Some(&format!("{long}x")), Err("cannot be a token's name: 1 to 64 of")),
        ] {
            match (made(&path, name, &[Scope::Read]), expect) {
                (Ok(new), Ok(expect)) => assert_eq!(new.name, expect),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (found, expect) => panic!("{name:?}: {found:?} instead of {expect:?}"),
            }
        }
    }

    #[test]
    fn a_folder_that_is_not_the_same_any_more_lets_nobody_in() {
        let (folder, _) = folder();
        let (data, away) = (folder.path().join("data"), folder.path().join("away"));
        std::fs::create_dir(&data).unwrap();
        let path = data.join("tokens.json");
        let mine = made(&path, Some("mine"), &[Scope::Read]).unwrap();
        let tokens = Tokens::new(path.clone());
        assert!(tokens.current().unwrap().unwrap().find(&mine.secret).is_some());
        // As if it were unmounted.
        std::fs::rename(&data, &away).unwrap();
        assert!(tokens.current().is_err(), "gone");
        std::fs::create_dir(&data).unwrap();
        assert!(tokens.current().is_err(), "another, empty");
        made(&path, Some("other"), &[Scope::Admin]).unwrap();
        assert!(tokens.current().is_err(), "another, with tokens");
        std::fs::remove_dir_all(&data).unwrap();
        std::fs::rename(&away, &data).unwrap();
        assert!(tokens.current().unwrap().unwrap().find(&mine.secret).is_some(), "back");
    }

    #[test]
    fn a_running_server_sees_every_change_at_once() {
        let (_folder, path) = folder();
        let tokens = Tokens::new(path.clone());
        assert!(tokens.current().unwrap().is_none(), "no file");

        let a = made(&path, Some("a"), &[Scope::Read, Scope::Write, Scope::Read]).unwrap();
        let b = made(&path, Some("b"), &[Scope::Admin]).unwrap();
        let known = tokens.current().unwrap().unwrap();
        let found = known.find(&a.secret).unwrap();
        assert_eq!((found.name.as_str(), found.scope_names()), ("a", "read, write".to_owned()));
        assert!(found.may(Scope::Write) && found.may(Scope::Read) && !found.may(Scope::Admin));
        assert!(known.find(&b.secret).unwrap().may(Scope::Write), "admin includes the others");
        assert!(known.find("kvmetry_").is_none() && known.find("").is_none());

        assert_eq!(revoke(&path, "a").unwrap(), 1);
        let known = tokens.current().unwrap().unwrap();
        assert!(known.find(&a.secret).is_none() && known.find(&b.secret).is_some());
        assert_eq!(revoke(&path, "b").unwrap(), 0);
        assert!(tokens.current().unwrap().unwrap().is_empty(), "still demanded, though none is left");
        assert_eq!(list(&path).unwrap(), []);
        fs::remove_file(&path).unwrap();
        assert!(tokens.current().unwrap().is_none());
    }

    #[test]
    fn a_file_that_cannot_be_read_lets_nobody_in() {
        #[track_caller]
        fn check(text: &str, expect: &str) {
            let (_folder, path) = folder();
            let good = made(&path, None, &[Scope::Admin]).unwrap();
            let tokens = Tokens::new(path.clone());
            assert!(tokens.current().unwrap().unwrap().find(&good.secret).is_some());
            fs::write(&path, text).unwrap();
            for _ in 0..2 {
                let error = tokens.current().unwrap_err().to_string();
                assert!(error.contains(expect), "{error}");
            }
            assert!(made(&path, None, &[Scope::Read]).is_err(), "nor is it overwritten");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        check("", "is damaged: EOF while parsing");
        check("[]", "is damaged: it has no version");
        check(r#"{"version":2,"tokens":[],"new":1}"#, "has version 2, this kvmetry knows 1");
        check(r#"{"version":1,"tokens":[],"new":1}"#, "unknown field `new`");
        let token = r#"{"version":1,"tokens":[{"name":"a","scopes":["x"],"sha256":"","created":""}]}"#;
        check(token, "unknown variant `x`");
        check(&" ".repeat(2 << 20), "larger than 1 MiB");
    }

    #[test]
    fn a_hash_that_is_none_is_said_with_its_token() {
        for sha256 in ["", "abc", &"g".repeat(64), &"A".repeat(64), &"é".repeat(32)] {
            let (_folder, path) = folder();
            made(&path, None, &[Scope::Admin]).unwrap();
            let token =
                serde_json::json!({ "name": "a", "scopes": ["read"], "sha256": sha256, "created": "" });
            fs::write(&path, serde_json::json!({ "version": 1, "tokens": [token] }).to_string()).unwrap();
            let error = Tokens::new(path).current().unwrap_err().to_string();
            assert!(error.contains("the sha256 of \"a\" is not 64 hexadecimal digits"), "{error}");
        }
    }

    /// The folder is a service's, which may put links into it; it is root who makes tokens.
    #[test]
    fn links_beside_the_file_lead_nowhere() {
        for name in ["tokens.lock", "tokens.new"] {
            let (folder, path) = folder();
            let elsewhere = folder.path().join("elsewhere");
            fs::write(&elsewhere, "not a token").unwrap();
            fs::create_dir(path.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(&elsewhere, path.with_file_name(name)).unwrap();
            assert_eq!(made(&path, None, &[Scope::Read]).is_ok(), name == "tokens.new", "{name}");
            assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "not a token", "{name}");
        }
    }

    #[test]
    fn two_changes_at_once_lose_nothing() {
        let (_folder, path) = folder();
        made(&path, Some("first"), &[Scope::Read]).unwrap();
        let lock = disk::open_or_create(&path.with_extension("lock"), MODE).unwrap();
        lock.lock().unwrap();
        let error = made(&path, None, &[Scope::Read]).unwrap_err().to_string();
        assert!(error.contains("another kvmetry is changing"), "{error}");
        drop(lock);
        // What a crash leaves behind is in nobody's way.
        fs::write(path.with_extension("new"), "rubbish").unwrap();
        made(&path, None, &[Scope::Read]).unwrap();
        assert_eq!(list(&path).unwrap().len(), 2);
        assert!(matches!(revoke(&path, "second"), Err(TokensError::Unknown(_))));
    }
}
