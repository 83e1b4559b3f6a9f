//! The frame of a page, and how data are put into it.

use serde::Serialize;

/// A page is at most so long.
pub const MOST_BYTES: usize = 700_000;

const FRAME: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
/// In the order in which they name one another.
const SCRIPTS: [&str; 7] = [
    include_str!("base.js"),
    include_str!("map.js"),
    include_str!("tensor.js"),
    include_str!("reading.js"),
    include_str!("graph.js"),
    include_str!("check.js"),
    include_str!("main.js"),
];

/// A page with these data; its title and its answer are there without scripts too.
pub fn page(title: &str, answer: &str, data: &impl Serialize) -> String {
    let mut parts = FRAME.split("{{").flat_map(|part| part.split("}}"));
    let mut text = String::new();
    text.push_str(parts.next().unwrap_or_default());
    while let (Some(name), Some(rest)) = (parts.next(), parts.next()) {
        match name {
            "title" => text.push_str(&escaped(title)),
            "answer" => text.push_str(&escaped(answer)),
            "style" => text.push_str(STYLE),
            "data" => text.push_str(&json(data)),
            "scripts" => SCRIPTS.iter().for_each(|script| text.push_str(script)),
            other => unreachable!("the frame has no {other}"),
        }
        text.push_str(rest);
    }
    text
}

/// How long a page is without its data.
pub fn frame_bytes() -> usize {
    FRAME.len() + STYLE.len() + SCRIPTS.iter().map(|script| script.len()).sum::<usize>()
}

/// As it may stand within a script element: a string never ends it, nor begins a comment.
pub fn json(data: &impl Serialize) -> String {
    let text = serde_json::to_string(data).expect("a page's data are plain data");
    text.replace('<', "\\u003c")
}

/// A text as the content of an element.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_markup_ends_no_element_and_comes_back_as_it_was() {
        let name = "</script><script>alert(1)</script><!-- & \u{2028}";
        let text = page(name, name, &[name]);
        assert_eq!(text.matches("<script").count(), FRAME.matches("<script").count());
        assert_eq!(text.matches("</script").count(), FRAME.matches("</script").count());
        assert!(text.contains("&lt;/script&gt;&lt;script&gt;alert(1)"), "{text}");
        let start = text.find("application/json\">").unwrap() + "application/json\">".len();
        let end = start + text[start..].find("</script>").unwrap();
        let back: Vec<String> = serde_json::from_str(&text[start..end]).unwrap();
        assert_eq!(back, [name]);
    }

    #[test]
    fn the_frame_names_each_part_once_and_loads_nothing() {
        for part in ["title", "answer", "style", "data", "scripts"] {
            assert_eq!(FRAME.matches(&format!("{{{{{part}}}}}")).count(), 1, "{part}");
        }
        let text = page("", "", &0);
        for foreign in ["http://", "https://", "src=", "@import", "url("] {
            let own = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!own.contains(foreign), "{foreign}");
        }
    }
}
