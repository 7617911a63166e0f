// Shown instead of every page while the server asks for a token.
import { useEffect, useRef, useState } from "preact/hooks";
import { checkSession, logIn } from "../http.ts";

export function Login({ done }: { done: () => void }) {
  const input = useRef<HTMLInputElement>(null);
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);

  useEffect(() => {
    document.title = "Log in · kvmetry";
    input.current?.focus();
    // Another tab may have logged in meanwhile.
    const again = () => {
      if (document.visibilityState === "visible") void checkSession();
    };
    document.addEventListener("visibilitychange", again);
    return () => document.removeEventListener("visibilitychange", again);
  }, []);

  const submit = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await logIn(input.current?.value.trim() ?? "");
      done();
    } catch (error) {
      setProblem(error instanceof Error ? error.message : String(error));
      setBusy(false);
      input.current?.select();
    }
  };

  return (
    <form class="login" onSubmit={(event) => void submit(event)}>
      <h1>Log in</h1>
      <p>This dashboard asks for a token. <code>kvmetry token</code> on the server makes one.</p>
      <label for="token">Token</label>
      <input id="token" ref={input} type="password" autocomplete="current-password" required spellcheck={false}
        aria-describedby={problem === "" ? undefined : "login-problem"} aria-invalid={problem !== ""} />
      <p id="login-problem" class="problem" role="alert">{problem}</p>
      <button type="submit" class="primary" disabled={busy}>Log in</button>
    </form>
  );
}
