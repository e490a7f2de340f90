import type { IncomingMessage } from 'node:http'
import { Agent, request } from 'node:https'

export interface TestReply {
  readonly status: number
  /** As they were sent, case and all. */
  readonly rawHeaders: Readonly<Record<string, string>>
  readonly headers: IncomingMessage['headers']
  readonly text: string
}

export interface TestRequest {
  readonly json?: unknown
  readonly body?: string | Buffer
  readonly headers?: Record<string, string>
}

export interface TestClient {
  /** Fails after 30 s. */
  send(method: string, path: string, content?: TestRequest): Promise<TestReply>
  /** The reply while it is open. */
  stream(path: string): Promise<IncomingMessage>
  close(): void
}

export interface TestClientOptions {
  readonly url: string
  readonly ca: string
  readonly certificate?: string
  readonly key?: string
  readonly tls12?: boolean
}

const DEADLINE_MS = 30_000

/** Plain node:https, so that a test sees what a foreign client would see. */
export function openTestClient(options: TestClientOptions): TestClient {
  const { ca, certificate: cert, key } = options
  const agent = new Agent({
    ca,
    keepAlive: true,
    ...(cert && key ? { cert, key } : {}),
    ...(options.tls12 ? { maxVersion: 'TLSv1.2' as const } : {}),
  })
  const open = (method: string, path: string, content: TestRequest = {}) => {
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>()
    const body = content.json === undefined ? content.body : JSON.stringify(content.json)
    const headers = content.json === undefined ? {} : { 'content-type': 'application/json' }
    const outgoing = request(new URL(path, options.url), {
      agent,
      method,
      signal: AbortSignal.timeout(DEADLINE_MS),
      headers: { ...headers, ...content.headers },
    })
    outgoing.once('response', resolve).once('error', reject).end(body)
    return promise
  }
  return {
    async send(method, path, content) {
      const reply = await open(method, path, content)
      const chunks: Buffer[] = []
      for await (const chunk of reply) chunks.push(chunk)
      const { rawHeaders } = reply
      const pairs = rawHeaders.flatMap((name, at) => (at % 2 === 0 ? [[name, rawHeaders[at + 1] ?? '']] : []))
      return {
        status: reply.statusCode ?? 0,
        rawHeaders: Object.fromEntries(pairs),
        headers: reply.headers,
        text: Buffer.concat(chunks).toString('utf8'),
      }
    },
    stream: (path) => open('GET', path),
    close: () => agent.destroy(),
  }
}
