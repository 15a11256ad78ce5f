"""What `lorikeet bench train|memory` measures."""
