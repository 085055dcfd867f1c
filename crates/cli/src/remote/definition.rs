//! An endpoint's definition on the command line.

use serde_json::{Map, Value};

/// Keys of an endpoint as in the configuration file; what they may be, Backstop says.
#[derive(clap::Args)]
#[command(next_help_heading = "Endpoint (as in the configuration file)")]
pub(super) struct Definition {
    /// Its dialect: vllm, sglang, llama.cpp, ollama, openai or sim
    #[arg(long, value_name = "ENGINE")]
    engine: Option<String>,
    /// The `model` to send it [default: what the client sent]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Share of the traffic relative to its siblings
    #[arg(long, value_name = "N")]
    weight: Option<f64>,
    /// 0 is the primary tier; higher ones take over as lower ones lose health
    #[arg(long, value_name = "N")]
    priority: Option<u8>,
    /// Where it stands
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// Which HTTP to speak to it: auto, http1 or http2
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<String>,
    /// What several addresses of its name are: one (server) or each (a server of its own)
    #[arg(long, value_name = "WHAT")]
    addresses: Option<String>,
    /// Bearer token for it; `'${NAME}'` is filled in from the environment of the running Backstop
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// PEM file, on the machine of the running Backstop, of the authority that signed its certificate
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<String>,
    /// The name that its certificate is for
    #[arg(long, value_name = "NAME")]
    tls_server_name: Option<String>,
}

impl Definition {
    /// What was given, in the form of the file.
    pub(super) fn of(&self, url: &str) -> Value {
        let mut keys = Map::new();
        keys.insert("url".to_owned(), url.into());
        let texts = [
            ("engine", &self.engine),
            ("model", &self.model),
            ("region", &self.region),
            ("protocol", &self.protocol),
            ("addresses", &self.addresses),
            ("api_key", &self.api_key),
        ];
        for (key, value) in texts {
            keys.extend(value.as_ref().map(|value| (key.to_owned(), value.as_str().into())));
        }
        keys.extend(self.weight.map(|weight| ("weight".to_owned(), weight.into())));
        keys.extend(self.priority.map(|priority| ("priority".to_owned(), priority.into())));
        let mut tls = Map::new();
        for (key, value) in [("ca", &self.tls_ca), ("server_name", &self.tls_server_name)] {
            tls.extend(value.as_ref().map(|value| (key.to_owned(), value.as_str().into())));
        }
        if !tls.is_empty() {
            keys.insert("tls".to_owned(), tls.into());
        }
        keys.into()
    }
}
