import { MusterError } from '#shared/errors'
import { openJsonClient } from '#shared/json-client'
import type { Log } from '#shared/log'
import type { Config } from '../config.ts'
import { type Credential, enrollBroker, readCredential, readInvitation } from './credential.ts'

/**
 * The broker's credential: the one in its directory, or at the first start what its invitation gives. An expired one
 * needs a new invitation.
 * @throws MusterError config_invalid (nothing to start with), and as {@link readCredential} and {@link enrollBroker}
 */
export async function obtainCredential(
  config: Config,
  { log, now }: { readonly log: Log; now(): number },
): Promise<Credential> {
  const { directory, hosts } = config
  const kept = readCredential(directory)
  if (kept !== null && kept.notAfter >= now()) return kept
  if (config.invitation === null) throw uninvited(directory, kept)
  const invitation = readInvitation(config.invitation)
  const client = openJsonClient({ url: invitation.url, ca: invitation.root })
  try {
    const credential = await enrollBroker({ directory, invitation, hosts, client })
    log.info({ broker: credential.broker, registry: credential.url }, 'admitted')
    return credential
  } finally {
    await client.close()
  }
}

function uninvited(directory: string, kept: Credential | null): MusterError {
  const state =
    kept === null
      ? `there is no certificate in "${directory}"`
      : `its certificate expired on ${new Date(kept.notAfter).toISOString()}`
  return new MusterError(
    'config_invalid',
    `Cannot start the broker: ${state}; fix: \`muster broker invite > invitation.json\` where the plane runs, then \`muster broker --invite invitation.json\` here`,
  )
}
