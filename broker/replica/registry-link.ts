import type { ReportBatch, ReportReply } from '#shared/feed'
import { type JsonClient, openJsonClient } from '#shared/json-client'
import type { Credential } from './credential.ts'

/** Longest wait for the reply to a batch of reports, ms. */
const REPLY_DEADLINE_MS = 10_000

/** The way to the registry's admin listener, with the broker's own certificate; a renewal exchanges it. */
export class RegistryLink {
  #client: JsonClient

  constructor(credential: Credential) {
    this.#client = openWith(credential)
  }

  /** Opens the change stream. @throws MusterError as {@link JsonClient.stream} */
  open(path: string, signal: AbortSignal): Promise<AsyncIterable<Uint8Array>> {
    return this.#client.stream(path, signal)
  }

  report(batch: ReportBatch): Promise<ReportReply> {
    return this.#client.send('POST', '/v1/feed/reports', batch, REPLY_DEADLINE_MS)
  }

  /** For the renewal; to be asked for each time. */
  get client(): JsonClient {
    return this.#client
  }

  /** Uses another pair from now on. What is under way with the old one fails and is repeated by whoever asked. */
  async use(credential: Credential): Promise<void> {
    const old = this.#client
    this.#client = openWith(credential)
    await old.close()
  }

  close(): Promise<void> {
    return this.#client.close()
  }
}

function openWith({ url, ca, certificate, key }: Credential): JsonClient {
  return openJsonClient({ url, ca, certificate, key })
}
