"""EmojiScenes: a captioned data set of emoji by real artists, its encoders and its scorer."""
