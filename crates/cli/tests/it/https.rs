//! Commands that ask over TLS.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::backstop::{BIN, Said, directory};

/// Serves each connection in a thread of its own, for as long as the test runs.
fn server(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || serve(stream));
        }
    });
    addr
}

fn list(admin: &str, arguments: &[&str]) -> Said {
    let mut command = Command::new(BIN);
    command.args(["endpoint", "list", "--json", "--admin", admin]).args(arguments);
    command.env_remove("BACKSTOP_ADMIN").env_remove("BACKSTOP_TOKEN").env_remove("BACKSTOP_CA");
    Said::of(command)
}

#[test]
fn certificates_are_checked() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let addr = server(move |stream| {
        let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
        // Fails if the client does not trust us.
        if tls.read(&mut [0; 4096]).is_ok() {
            let _ = tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]");
        }
    });
    let directory = directory();
    let ca = directory.join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let ca = ca.to_str().unwrap();
    let url = format!("https://localhost:{}", addr.port());

    let trusted = list(&url, &["--ca", ca]);
    assert_eq!((trusted.code, trusted.out.as_str()), (Some(0), "[]\n"), "{}", trusted.err);
    let unknown = list(&url, &[]);
    assert_eq!(unknown.code, Some(1));
    let no_authorities = unknown.err.contains("no list of authorities");
    assert!(no_authorities || unknown.err.contains("is not to be trusted"), "{}", unknown.err);
    assert!(unknown.err.contains("--ca FILE"), "{}", unknown.err);
    let other_name = list(&format!("https://127.0.0.1:{}", addr.port()), &["--ca", ca]);
    assert_eq!(other_name.code, Some(1));
    assert!(
        other_name.err.contains("is not to be trusted") && other_name.err.contains("use the name"),
        "{}",
        other_name.err
    );
    let plain = list(&format!("http://127.0.0.1:{}", addr.port()), &[]);
    assert!(plain.code == Some(1) && plain.err.contains("is it `https://`"), "{}", plain.err);
    let needless = list("http://127.0.0.1:1", &["--ca", ca]);
    assert!(needless.code == Some(1) && needless.err.contains("is for an `https` URL"), "{}", needless.err);
    std::fs::write(ca, "nothing").unwrap();
    let empty = list(&url, &["--ca", ca]);
    assert!(empty.code == Some(1) && empty.err.contains("there is no certificate in"), "{}", empty.err);
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn servers_that_are_not_backstop() {
    let plain = server(|mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 3\r\n\r\nno\n");
    });
    let said = list(&format!("http://{plain}"), &[]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.contains("answered 404, but not as Backstop does\nhint: is that the control API"),
        "{}",
        said.err
    );
    let silly = server(|mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"220 mail.example ESMTP\r\n");
    });
    let said = list(&format!("http://{silly}"), &[]);
    assert!(
        said.code == Some(1) && said.err.contains("does not answer as a web server does"),
        "{}",
        said.err
    );
    let directory = directory();
    let ca = directory.join("ca.pem");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let said = list(&format!("https://localhost:{}", silly.port()), &["--ca", ca.to_str().unwrap()]);
    assert!(
        said.code == Some(1) && said.err.contains("does not speak TLS\nhint: is it `http://`?"),
        "{}",
        said.err
    );
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn nobody_is_there() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let said = list(&format!("http://{free}"), &[]);
    assert_eq!(said.code, Some(1));
    let expected = format!(
        "error: can't reach `http://{free}`: Connection refused (os error 111)\nhint: is Backstop running there? Name its \
         `admin.listen` with `--admin` or BACKSTOP_ADMIN\n"
    );
    assert_eq!(said.err, expected);
    let said = list("http://nobody.invalid:9090", &[]);
    assert!(said.code == Some(1) && said.err.contains("hint: "), "{}", said.err);
    let said = list("nonsense", &[]);
    assert!(said.code == Some(2) && said.err.contains("`nonsense` has no port"), "{}", said.err);
}
