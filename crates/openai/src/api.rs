/// Which OpenAI API a request addresses, by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/responses`
    Responses,
    /// Any other `/v1/…`: passed through by `model` or by the service header.
    Other,
}

impl Api {
    /// `None` outside `/v1/`.
    pub fn from_path(path: &str) -> Option<Self> {
        let rest = path.strip_prefix("/v1/")?;
        Some(match rest.strip_suffix('/').unwrap_or(rest) {
            "chat/completions" => Self::Chat,
            "completions" => Self::Completions,
            "embeddings" => Self::Embeddings,
            "responses" => Self::Responses,
            _ => Self::Other,
        })
    }

    /// The path without variations, so that an engine need not redirect; `None` for [`Self::Other`].
    pub fn path(self) -> Option<&'static str> {
        match self {
            Self::Chat => Some("/v1/chat/completions"),
            Self::Completions => Some("/v1/completions"),
            Self::Embeddings => Some("/v1/embeddings"),
            Self::Responses => Some("/v1/responses"),
            Self::Other => None,
        }
    }

    /// The four whose body is a JSON object that must name a `model` and whose only method is POST.
    pub fn is_json_post(self) -> bool {
        self != Self::Other
    }
}
