import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'
import { writeFileDurably } from '#shared/files'
import { layout } from '#shared/layout'
import { caDirectory, prepareDirectory } from './ca/ca-directory.ts'
import { installCertificates, type OfflineNames, requestIssuers, signIssuer } from './ca/offline-root.ts'
import { ownSecrets } from './config.ts'
import { readPassphrase } from './passphrase.ts'
import { type Backup, makeBackup } from './registry/backup.ts'
import { type Restored, restoreBackup } from './registry/restore.ts'

/** What is done to the data directory of a plane on this machine, by commands that do not go through the admin API. */
export interface Maintenance {
  backup(request: { data: string; out: string; journal: string | null }): Backup
  restore(request: {
    data: string
    backup: string
    journal: string | null
    acceptLoss: boolean
  }): Promise<Restored>
  /** Keys of the issuing CAs and requests for them, for a root elsewhere. Returns the paths of the requests. */
  initOffline(request: OfflineNames & { data: string }): Promise<string[]>
  /** Signs a request with the root in a directory; returns the path of the chain. */
  signIssuer(request: OfflineNames & { rootDirectory: string; csr: string }): Promise<string>
  /** Returns the SHA-256 of the root. */
  install(request: { data: string; certificates: readonly string[] }): string
}

export function openMaintenance(now: () => number = Date.now): Maintenance {
  const at = (data: string, journal: string | null) => {
    const directories = layout(data)
    return { layout: directories, journal: journal === null ? directories.journal : resolve(journal) }
  }
  return {
    backup: ({ data, out, journal }) => makeBackup({ ...at(data, journal), out: resolve(out), now: now() }),
    restore: ({ data, backup, journal, acceptLoss }) =>
      restoreBackup({
        ...at(data, journal),
        backup: resolve(backup),
        acceptLoss,
        epoch: randomBytes(16).toString('hex'),
        now: now(),
      }),
    initOffline: async ({ data, ...names }) => {
      const { ca } = layout(data)
      return requestIssuers(ca, { ...names, passphrase: passphraseFor(ca) })
    },
    signIssuer: async ({ rootDirectory, csr, ...names }) => {
      const directory = resolve(rootDirectory)
      const passphrase = passphraseFor(directory)
      const { chain } = await signIssuer(directory, {
        ...names,
        csr: readFileSync(csr, 'utf8'),
        passphrase,
        now: now(),
      })
      const path = join(directory, `${basename(csr, '.csr')}.chain.pem`)
      writeFileDurably(path, chain)
      return path
    },
    install: ({ data, certificates }) => {
      const { ca } = layout(data)
      const pems = certificates.map((path) => readFileSync(path, 'utf8'))
      return installCertificates(ca, { pems, passphrase: passphraseFor(ca) })
    },
  }
}

/** As `muster enrollment` finds it: file, environment, credential, or made beside the keys. */
function passphraseFor(directory: string): string {
  prepareDirectory(caDirectory(directory))
  return readPassphrase(ownSecrets(directory).passphrase, randomBytes)
}
