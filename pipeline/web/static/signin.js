// Asks for the server's token. It is sent once, in a request's body, and a cookie that scripts cannot read comes back.
import { ApiError, signIn } from "./api.js";
import { h, problemBox } from "./dom.js";

/** Show the form; calls done() as soon as the server took the token. */
export function showSignIn(main, done) {
  const input = h("input", {
    type: "password",
    id: "token",
    autocomplete: "current-password",
    required: true,
    "aria-describedby": "token-hint",
  });
  const answer = h("div");
  const submit = async (event) => {
    event.preventDefault();
    try {
      await signIn(input.value);
      done();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      answer.replaceChildren(problemBox(error));
      input.select();
    }
  };
  main.replaceChildren(
    h(
      "div.home",
      {},
      h(
        "form.signin",
        { onsubmit: submit },
        h("h1", {}, "Sign in"),
        h("p.lead", { id: "token-hint" }, "This server asks for a token. Whoever started it has it."),
        h("label", { for: "token" }, "Token"),
        input,
        answer,
        h("div.row", {}, h("button.primary", { type: "submit" }, "Sign in")),
      ),
    ),
  );
  input.focus();
}
