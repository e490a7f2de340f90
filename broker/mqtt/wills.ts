import type { CommitGroup } from '../store/commit-group.ts'
import type { SessionRows } from '../store/session-rows.ts'
import type { Will } from './mqtt-client.ts'

/** Wills by client id, in memory first: whether one is stored decides what the next packet of its client may do. */
export class Wills {
  readonly #rows: SessionRows
  readonly #group: CommitGroup
  readonly #byClient = new Map<string, Will>()
  /** Client ids of services that have added a name to theirs. */
  readonly #named = new Map<string, Set<string>>()

  constructor(rows: SessionRows, group: CommitGroup) {
    this.#rows = rows
    this.#group = group
  }

  load(): void {
    for (const { client, broker, retain, fingerprint, connection, ...rest } of this.#rows.wills()) {
      const known = {
        ...(fingerprint === null ? {} : { fingerprint }),
        ...(connection === null ? {} : { connection }),
      }
      this.#set(client, {
        ...rest,
        retain: retain === 1,
        clientId: client,
        brokerId: broker,
        ...known,
      } as Will) // nulls taken out
    }
  }

  get(clientId: string): Will | undefined {
    return this.#byClient.get(clientId)
  }

  all(): Iterable<Will> {
    return this.#byClient.values()
  }

  /** Client ids `<identity>:<name>` that have a will. */
  clientsOf(identity: string): Iterable<string> {
    return this.#named.get(identity) ?? []
  }

  #set(clientId: string, will: Will): void {
    this.#byClient.set(clientId, will)
    const [identity = '', name] = clientId.split(':')
    if (name !== undefined) this.#named.set(identity, (this.#named.get(identity) ?? new Set()).add(clientId))
  }

  #take(clientId: string): void {
    this.#byClient.delete(clientId)
    const [identity = ''] = clientId.split(':', 1)
    const named = this.#named.get(identity)
    named?.delete(clientId)
    if (named?.size === 0) this.#named.delete(identity)
  }

  /** Resolves when it is on disk. Its broker's id is in it from then on, and its client's. */
  async put(clientId: string, will: Will, brokerId: string): Promise<void> {
    Object.assign(will, { brokerId, clientId })
    this.#set(clientId, will)
    try {
      await this.#group.commit(() => this.#rows.putWill(clientId, brokerId, will))
    } catch (error) {
      if (this.#byClient.get(clientId) === will) this.#take(clientId)
      throw error
    }
  }

  async delete(clientId: string): Promise<Will | undefined> {
    const will = this.#byClient.get(clientId)
    if (will === undefined) return undefined
    this.#take(clientId)
    try {
      await this.#group.commit(() => this.#rows.deleteWill(clientId))
    } catch (error) {
      if (!this.#byClient.has(clientId)) this.#set(clientId, will) // as it is on disk
      throw error
    }
    return will
  }
}
