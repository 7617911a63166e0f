//! Every way to a daemon and every way to log in, and what is said where a way is closed.
//!
//! The daemon is the test's own ([`xtask::lab::daemon`]) and serves libvirt's test driver, whose one domain is called
//! `test`: over the wire it is as good as a QEMU, and it is there at once. Certificates are made by `openssl`,
//! passwords by `saslpasswd2`, and ssh logs in to an sshd of the test's own on the loopback address.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use xtask::lab::daemon::{Daemon, DaemonOptions, free_port};

use crate::harness::{Ended, SOON, clean, command, finish, finish_command, sudo};

/// For one `kvmetry once`, over ssh too.
const PATIENCE: Duration = Duration::from_secs(20);

/// Reads the test driver's domain, and says nothing else.
#[track_caller]
fn reads(uri: &str) {
    judge_read(uri, &finish(&["once", "--uri", uri], PATIENCE));
}

#[track_caller]
fn judge_read(uri: &str, ended: &Ended) {
    read_whole(uri, ended);
    assert_eq!(ended.stderr, "", "{uri}");
}

/// Reads it, and warns of this alone.
#[track_caller]
fn reads_with_a_warning(uri: &str, warning: &str) {
    let ended = finish(&["once", "--uri", uri], PATIENCE);
    read_whole(uri, &ended);
    assert_eq!(ended.stderr.lines().count(), 1, "{uri}: {}", ended.stderr);
    assert!(ended.stderr.contains(" WARN ") && ended.stderr.contains(warning), "{uri}: {}", ended.stderr);
}

#[track_caller]
fn read_whole(uri: &str, ended: &Ended) {
    assert_eq!(ended.code(), 0, "{uri}: {ended:?}");
    assert!(ended.stdout.contains("vm_totals,VMID=1,"), "{uri}: {ended:?}");
    assert!(ended.stdout.contains(",name=test,"), "{uri}: {ended:?}");
}

/// Fails with one line that holds all of these parts.
#[track_caller]
fn refuses(uri: &str, parts: &[&str]) {
    judge_refusal(uri, &finish(&["once", "--uri", uri], PATIENCE), 1, parts);
}

#[track_caller]
fn judge_refusal(uri: &str, ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code(), code, "{uri}: {ended:?}");
    assert_eq!(ended.stdout, "", "{uri}");
    assert_eq!(ended.stderr.lines().count(), 1, "{uri}: {}", ended.stderr);
    assert!(ended.stderr.starts_with("kvmetry: "), "{uri}: {}", ended.stderr);
    for part in parts {
        assert!(ended.stderr.contains(part), "{uri}: {part:?} is not in {:?}", ended.stderr);
    }
}

/// A directory that everybody may enter, unlike `tempfile`'s own.
fn open_dir() -> TempDir {
    let dir = TempDir::with_prefix_in("kvmetry-transports-", "/var/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn unix_sockets_that_are_absent_or_closed() {
    let daemon = Daemon::running(DaemonOptions::default().set("unix_sock_rw_perms", "0700")).unwrap();
    let socket = daemon.socket();
    let uri = |socket: &Path| format!("test+unix:///default?socket={}", socket.display());
    let read_only = PathBuf::from(format!("{}-ro", socket.display()));
    reads(&uri(&read_only));
    reads(&uri(&socket));
    refuses(&uri(&daemon.dir().join("none-ro")), &["none-ro: no such socket", "is the daemon running"]);

    // As a user in no group of libvirt's. The program may be built where that user cannot go.
    let dir = open_dir();
    let program = dir.path().join("kvmetry");
    fs::copy(env!("CARGO_BIN_EXE_kvmetry"), &program).unwrap();
    let as_nobody = |uri: &str| {
        let drop_all = ["--reuid=nobody", "--regid=nogroup", "--clear-groups", shown(&program)];
        finish_command(
            clean(Command::new("setpriv"), &[&drop_all[..], &["once", "--uri", uri]].concat()),
            PATIENCE,
        )
    };
    judge_read("as nobody", &as_nobody(&uri(&read_only)));
    let refused = ["permission refused: mode 0700, user 0", "use its -ro neighbour"];
    judge_refusal("as nobody", &as_nobody(&uri(&socket)), 1, &refused);
    fs::set_permissions(daemon.dir().join("run"), fs::Permissions::from_mode(0o700)).unwrap();
    let refused = ["permission refused: a directory above it is closed to us", "namei -l"];
    judge_refusal("as nobody", &as_nobody(&uri(&read_only)), 1, &refused);
}

#[test]
fn uris_that_make_no_sense() {
    let check = |uri: &str, parts: &[&str]| {
        let ended = finish(&["once", "--uri", uri], PATIENCE);
        judge_refusal(uri, &ended, 2, &[&[uri][..], parts].concat());
    };
    check("qemu+tpc://host/system", &["unknown transport \"tpc\"", "tcp"]);
    check("qmeu:///system", &["unknown driver \"qmeu\"", "qemu"]);
    check("qemu+tcp://host:70000/system", &["port \"70000\""]);
    check("qemu:///sytem", &["path \"/sytem\""]);
    check("qemu+tls://host/system?pkipth=/x", &["pkipth", "pkipath"]);
    check("qemu+unix://host/system", &["host \"host\""]);
}

// ---- TLS

/// Two authorities, and certificates of theirs.
struct Pki(TempDir);

impl Pki {
    fn new() -> Self {
        let pki = Self(open_dir());
        fs::write(
            pki.path("openssl.cnf"),
            "[req]\ndistinguished_name = dn\nprompt = no\n[dn]\n\
             [ca]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign, cRLSign\n\
             [server]\nbasicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature, keyEncipherment\n\
             extendedKeyUsage = serverAuth\nsubjectAltName = DNS:localhost\n\
             [client]\nbasicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature, keyEncipherment\n\
             extendedKeyUsage = clientAuth\n",
        )
        .unwrap();
        for dir in ["good", "other"] {
            fs::create_dir(pki.path(dir)).unwrap();
            pki.certificate(dir, "ca", &format!("{dir} CA"), None);
            pki.certificate(dir, "server", "server", Some(dir));
            pki.certificate(dir, "client", "kvmetry", Some(dir));
        }
        // One half of each: the client trusts the wrong authority, or shows a certificate of the wrong one.
        pki.mixed("distrusting", "other", "good");
        pki.mixed("distrusted", "good", "other");
        pki
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `DIR/KINDkey.pem` and `DIR/KINDcert.pem`, signed by the authority in another directory or by itself.
    fn certificate(&self, dir: &str, kind: &str, name: &str, signer: Option<&str>) {
        let [key, cert] = ["key", "cert"].map(|it| self.path(&format!("{dir}/{kind}{it}.pem")));
        let (config, subject) = (self.path("openssl.cnf"), format!("/CN={name}"));
        let mut args = vec![
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-config",
            shown(&config),
            "-extensions",
            kind,
            "-subj",
            &subject,
            "-keyout",
            shown(&key),
            "-out",
            shown(&cert),
        ];
        let authority = signer.map(|dir| ["cert", "key"].map(|it| self.path(&format!("{dir}/ca{it}.pem"))));
        if let Some([cert, key]) = &authority {
            args.extend(["-CA", shown(cert), "-CAkey", shown(key)]);
        }
        sudo(&args);
    }

    fn mixed(&self, dir: &str, authority: &str, client: &str) {
        fs::create_dir(self.path(dir)).unwrap();
        for (from, name) in [(authority, "cacert.pem"), (client, "clientcert.pem"), (client, "clientkey.pem")]
        {
            fs::copy(self.path(from).join(name), self.path(dir).join(name)).unwrap();
        }
    }
}

/// Ports and options of a daemon that listens on the network with the good authority's certificate.
struct Network {
    tcp: u16,
    tls: u16,
    pki: Pki,
}

impl Network {
    fn new() -> Self {
        Self { tcp: free_port().unwrap(), tls: free_port().unwrap(), pki: Pki::new() }
    }

    fn options(&self) -> DaemonOptions {
        let file = |name: &str| self.pki.path("good").join(name).display().to_string();
        let options = DaemonOptions { listen: true, ..DaemonOptions::default() };
        options
            .set("listen_addr", "127.0.0.1")
            .set_number("listen_tcp", 1)
            .set_number("listen_tls", 1)
            .set("tcp_port", &self.tcp.to_string())
            .set("tls_port", &self.tls.to_string())
            .set("auth_tcp", "none")
            .set("ca_file", &file("cacert.pem"))
            .set("cert_file", &file("servercert.pem"))
            .set("key_file", &file("serverkey.pem"))
    }

    fn tcp(&self, host: &str) -> String {
        format!("test+tcp://{host}:{}/default", self.tcp)
    }

    fn tls(&self, host: &str, pki: &str) -> String {
        format!("test+tls://{host}:{}/default?pkipath={}", self.tls, self.pki.path(pki).display())
    }
}

#[test]
fn tcp_and_tls() {
    let network = Network::new();
    let daemon = Daemon::running(network.options()).unwrap();
    reads(&network.tcp("127.0.0.1"));
    reads(&network.tls("localhost", "good"));
    let unverified = format!("{}&no_verify=1", network.tls("127.0.0.1", "good"));
    reads_with_a_warning(&unverified, "no_verify=1: the server's certificate is not verified");

    refuses(&network.tls("localhost", "distrusting"), &["not signed by the CA", "distrusting/cacert.pem"]);
    refuses(&network.tls("127.0.0.1", "good"), &["is for localhost, not for 127.0.0.1"]);
    refuses(&network.tls("localhost", "distrusted"), &["the server refused", "distrusted/clientcert.pem"]);
    refuses(&network.tls("localhost", "none"), &["no CA certificate", "none/cacert.pem", "pkipath="]);
    // Each transport on the other's port.
    refuses(&format!("test+tcp://127.0.0.1:{}/default", network.tls), &["TLS port"]);
    let plain = format!(
        "test+tls://localhost:{}/default?pkipath={}",
        network.tcp,
        network.pki.path("good").display()
    );
    refuses(&plain, &["+tcp"]);
    drop(daemon);
    refuses(&network.tcp("127.0.0.1"), &["nobody listens on 127.0.0.1", "--listen"]);
    refuses(&network.tls("localhost", "good"), &["nobody listens on", "--listen"]);
    refuses(
        "qemu+tcp://no-such-host.invalid/system",
        &["cannot find the address of host \"no-such-host.invalid\""],
    );
}

// ---- SASL

/// The server's configuration and passwords of SASL, and the client's file of passwords.
struct Passwords(TempDir);

impl Passwords {
    /// One user, `monitor`, whose password is `pass word`.
    fn new() -> Self {
        let passwords = Self(open_dir());
        let database = passwords.path("passwords");
        let make = "printf '%s' 'pass word' | saslpasswd2 -p -c -a libvirt -u kvmetry -f \"$1\" monitor";
        sudo(&["sh", "-c", make, "sh", shown(&database)]);
        passwords.client_file("right", "pass word");
        passwords.client_file("wrong", "password");
        passwords
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What the daemon takes, from its next start on.
    fn offer(&self, mechanisms: &str) {
        let text = format!("mech_list: {mechanisms}\nsasldb_path: {}\n", self.path("passwords").display());
        fs::write(self.path("libvirt.conf"), text).unwrap();
    }

    fn client_file(&self, name: &str, password: &str) {
        let text = format!(
            "[credentials-x]\nusername=monitor@kvmetry\npassword={password}\n[auth-libvirt-localhost]\ncredentials=x\n"
        );
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn authfile(&self, name: &str) -> String {
        format!("authfile={}", self.path(name).display())
    }
}

#[test]
fn sasl_over_unix_and_tls() {
    let (network, passwords) = (Network::new(), Passwords::new());
    let mut options =
        network.options().set("auth_tcp", "sasl").set("auth_tls", "sasl").set("auth_unix_rw", "sasl");
    options.env.push(("SASL_CONF_PATH".into(), shown(passwords.0.path()).into()));
    let mut daemon = Daemon::new(options).unwrap();
    let unix = format!("test+unix:///default?socket={}", daemon.socket().display());
    let tls = network.tls("localhost", "good");
    for mechanism in ["scram-sha-256", "plain"] {
        passwords.offer(mechanism);
        daemon.start().unwrap();
        let refusal =
            format!("the daemon refused the {} login of \"monitor@kvmetry\"", mechanism.to_uppercase());
        for uri in [&unix, &tls] {
            reads(&format!("{uri}&{}", passwords.authfile("right")));
            refuses(&format!("{uri}&{}", passwords.authfile("wrong")), &[&refusal, "auth.conf"]);
            refuses(&format!("{uri}&{}", passwords.authfile("none")), &["wants a password", "none"]);
        }
        // In the clear neither is safe, and the daemon takes neither: the message says what is.
        let tcp = network.tcp("localhost");
        refuses(
            &format!("{tcp}?{}", passwords.authfile("right")),
            &["SASL over plain TCP", "TLS (+tls)", "SSH (+ssh)"],
        );
        daemon.stop().unwrap();
    }
}

// ---- SSH

/// An sshd on the loopback address, in front of the daemon's namespace: there its sockets are libvirt's usual ones.
struct Sshd {
    dir: TempDir,
    port: u16,
    child: Child,
}

impl Sshd {
    fn new(daemon: &Daemon) -> Self {
        let dir = open_dir();
        let path = |name: &str| dir.path().join(name);
        for key in ["host", "user", "other"] {
            sudo(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", shown(&path(key))]);
        }
        fs::copy(path("user.pub"), path("authorized_keys")).unwrap();
        let port = free_port().unwrap();
        let known = |key: &str| {
            let key = fs::read_to_string(path(key)).unwrap();
            format!("[127.0.0.1]:{port} {key}")
        };
        fs::write(path("known"), known("host.pub")).unwrap();
        fs::write(path("changed"), known("other.pub")).unwrap();
        fs::write(path("empty"), "").unwrap();
        // Where root's password is locked sshd lets nobody in without PAM.
        let shadow = fs::read_to_string("/etc/shadow").unwrap_or_default();
        let pam = if shadow.lines().any(|line| line.starts_with("root:!")) { "yes" } else { "no" };
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/authorized_keys\n\
             PidFile none\nStrictModes no\nUsePAM {pam}\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\n\
             ForceCommand exec nsenter --mount --target {holder} sh -c \"$SSH_ORIGINAL_COMMAND\"\n",
            dir = dir.path().display(),
            holder = daemon.holder_pid(),
        );
        fs::write(path("config"), config).unwrap();
        // sshd wants it, and where there is no init that starts sshd it is not there.
        fs::create_dir_all("/run/sshd").unwrap();
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-E", shown(&path("log")), "-f", shown(&path("config"))])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut sshd = Self { dir, port, child };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = sshd.child.try_wait().unwrap();
            let log = fs::read_to_string(sshd.dir.path().join("log")).unwrap_or_default();
            assert!(ended.is_none() && begun.elapsed() < SOON, "sshd does not listen: {log}");
        }
        sshd
    }

    fn uri(&self, key: &str, known: &str) -> String {
        let (port, dir) = (self.port, self.dir.path().display());
        format!("test+ssh://root@127.0.0.1:{port}/default?keyfile={dir}/{key}&known_hosts={dir}/{known}")
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ssh() {
    let mut daemon = Daemon::running(DaemonOptions::default()).unwrap();
    let sshd = Sshd::new(&daemon);
    let good = sshd.uri("user", "known");
    reads(&good);
    reads(&format!("{good}&proxy=native"));
    reads(&format!("{good}&proxy=netcat"));
    reads(&format!("{good}&socket={}-ro", daemon.socket().display()));

    refuses(&sshd.uri("user", "changed"), &["the host's key is another than before"]);
    refuses(
        &sshd.uri("user", "empty"),
        &["Host key verification failed", "accept it once by hand with \"ssh ", "/empty"],
    );
    // It is not asked for, and known from then on.
    reads(&format!("{}&no_verify=1", sshd.uri("user", "empty")));
    refuses(&sshd.uri("other", "known"), &["Permission denied (", "keyfile="]);
    refuses(&format!("{good}&socket=/none"), &["no libvirt daemon listens there"]);
    daemon.stop().unwrap();
    for proxy in ["native", "netcat"] {
        refuses(
            &format!("{good}&proxy={proxy}"),
            &["no libvirt daemon listens there", "systemctl start libvirtd"],
        );
    }
    drop(sshd);
    refuses(&good, &["Connection refused", "is the host up"]);
}

#[test]
fn an_ssh_that_is_not_installed() {
    refuses("qemu+ssh://host/system?command=/none/ssh", &["command=/none/ssh: no such program"]);
    let uri = "qemu+ssh://host/system";
    let mut command = command(&["once", "--uri", uri]);
    command.env("PATH", "/none");
    judge_refusal(uri, &finish_command(command, PATIENCE), 1, &["install openssh-client"]);
}
