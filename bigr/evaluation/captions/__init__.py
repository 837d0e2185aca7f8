"""Whether images show what their captions say: retrieval of captions by CLIP, or by a judge that is trained here."""
