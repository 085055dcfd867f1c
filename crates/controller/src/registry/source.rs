//! Where the files of a version come from: what is there, and what is refused before anything is copied.

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};

/// Files of one version.
const MOST_FILES: usize = 10_000;
/// Of a file within the version's directory, in bytes.
const LONGEST_PATH: usize = 512;

/// A file to be copied.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wanted {
    pub(super) from: From,
    /// Its path within the version's directory.
    pub(super) to: String,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum From {
    Path {
        path: PathBuf,
        bytes: u64,
    },
    /// An HTTP URL, as it was given.
    Url(String),
}

/// What is to be copied.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    pub(super) files: Vec<Wanted>,
    /// It is one file that was named as such.
    pub(super) is_one_file: bool,
}

impl Plan {
    /// Looks at all sources.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub(super) fn of(sources: &[String]) -> Result<Self, String> {
        let mut files = Vec::new();
        let mut is_one_file = sources.len() == 1;
        for source in sources {
            if is_url(source) {
                backstop_config::fetch_url(source)?;
                files.push(Wanted { from: From::Url(source.clone()), to: name_in_url(source)? });
                continue;
            }
            let path = Path::new(source);
            if !path.is_absolute() {
                return Err(format!(
                    "`{source}` is not an absolute path of the machine that Backstop runs on"
                ));
            }
            // What an operator names may be a link.
            let found = fs::metadata(path).map_err(|error| format!("`{source}`: {}", told(&error)))?;
            if found.is_dir() {
                is_one_file = false;
                let real = fs::canonicalize(path).map_err(|error| format!("`{source}`: {}", told(&error)))?;
                collect(&real, &real, "", &mut files)?;
            } else {
                let name = path.file_name().and_then(|name| name.to_str());
                let name = name.ok_or_else(|| format!("`{source}` names no file"))?;
                add(path, &found, name.to_owned(), &mut files)?;
            }
        }
        files.sort_by(|one, other| one.to.as_bytes().cmp(other.to.as_bytes()));
        if let Some(pair) = files.windows(2).find(|pair| pair[0].to == pair[1].to) {
            return Err(format!("two of the artifacts have a file `{}`", pair[0].to));
        }
        if files.is_empty() {
            return Err(format!("there is no file in `{}`", sources.join("`, `")));
        }
        Ok(Self { files, is_one_file })
    }

    /// Bytes, as far as they are known.
    pub(super) fn bytes(&self) -> u64 {
        let bytes = |file: &Wanted| if let From::Path { bytes, .. } = file.from { bytes } else { 0 };
        self.files.iter().map(bytes).sum()
    }
}

pub(super) fn is_url(source: &str) -> bool {
    source.contains("://")
}

/// Every file in `directory`, which is `top` or below it.
fn collect(top: &Path, directory: &Path, prefix: &str, files: &mut Vec<Wanted>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("`{}`: {}", directory.display(), told(&error));
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let shown = path.display();
        let name = entry.file_name().into_string();
        let name = name.map_err(|_| format!("the name of `{shown}` is not UTF-8"))?;
        let to = format!("{prefix}{name}");
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            collect(top, &path, &format!("{to}/"), files)?;
        } else if kind.is_symlink() {
            // Model hubs keep their files so.
            let real = fs::canonicalize(&path).map_err(|error| format!("`{shown}`: {}", told(&error)))?;
            if !real.starts_with(top) {
                return Err(format!("`{shown}` is a link that leads out of `{}`", top.display()));
            }
            let found = fs::metadata(&real).map_err(|error| format!("`{shown}`: {}", told(&error)))?;
            if found.is_dir() {
                // It could lead back to where it is.
                return Err(format!("`{shown}` is a link to a directory"));
            }
            add(&real, &found, to, files)?;
        } else {
            let found = entry.metadata().map_err(failed)?;
            add(&path, &found, to, files)?;
        }
    }
    Ok(())
}

fn add(path: &Path, found: &Metadata, to: String, files: &mut Vec<Wanted>) -> Result<(), String> {
    let shown = path.display();
    if !found.is_file() {
        return Err(format!("`{shown}` is neither a file nor a directory"));
    }
    if to.len() > LONGEST_PATH {
        return Err(format!("the path of `{shown}` is longer than {LONGEST_PATH} bytes"));
    }
    if files.len() >= MOST_FILES {
        return Err(format!("there are more than {MOST_FILES} files"));
    }
    files.push(Wanted { from: From::Path { path: path.to_owned(), bytes: found.len() }, to });
    Ok(())
}

/// What a file that is fetched is to be called.
fn name_in_url(url: &str) -> Result<String, String> {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let name = path.split_once("://").and_then(|(_, rest)| rest.split_once('/')?.1.rsplit('/').next());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+@=".contains(&byte);
    let is_name = |name: &&str| {
        !name.is_empty() && !name.starts_with('.') && name.len() <= LONGEST_PATH && name.bytes().all(plain)
    };
    let name = name.filter(is_name);
    name.map(str::to_owned).ok_or_else(|| {
        format!("the path of `{url}` does not end with the name of a file, such as `/models/v2.gguf`")
    })
}

/// In the words of this project.
pub(super) fn told(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "Backstop may not read it".to_owned(),
        std::io::ErrorKind::StorageFull => "the disk is full".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_what_is_fetched() {
        for (url, name) in [
            ("https://h/a/v2.gguf", Some("v2.gguf")),
            ("https://h:8080/v2.gguf?download=true", Some("v2.gguf")),
            ("https://h/${DIR}/v2.gguf", Some("v2.gguf")),
            ("https://h", None),
            ("https://h/", None),
            ("https://h/a/..", None),
            ("https://h/a%2Fb", None),
            ("https://h/.hidden", None),
            ("https://h/${NAME}", None),
        ] {
            assert_eq!(name_in_url(url).ok().as_deref(), name, "{url}");
        }
    }
}
